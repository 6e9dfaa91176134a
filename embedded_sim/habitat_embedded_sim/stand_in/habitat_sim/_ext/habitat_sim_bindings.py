"""Names of habitat-sim's compiled extension that Habitat-Lab uses in annotations."""

from habitat_embedded_sim.unsupported import add_placeholders, missing_attribute

add_placeholders(globals(), "Configuration")
__getattr__ = missing_attribute(__name__)
