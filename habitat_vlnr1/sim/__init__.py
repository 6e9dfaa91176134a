"""What a worker process registers with Habitat: dataset, sensors, measures and the vectorised environment."""

from importlib import import_module

MODULES = (
    "habitat_vlnr1.sim.datasets",
    "habitat_vlnr1.sim.sensors",
    "habitat_vlnr1.sim.expert",
    "habitat_vlnr1.sim.measures",
    "habitat_vlnr1.sim.gym_env",
)


def register_sim() -> None:
    """Registers dataset, sensors and measures, with their configs; harmless when repeated."""
    for name in MODULES:
        import_module(name)
