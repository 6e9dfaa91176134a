"""Stand-in for `habitat_sim.metadata`: importable only."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

add_placeholders(globals(), "MetadataMediator")
__getattr__ = missing_attribute(__name__)
