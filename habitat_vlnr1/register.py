"""The one list of everything that Habitat must be told about. Importing a module registers what it defines."""

from importlib import import_module

# What a worker process needs: neither transformers nor a policy.
SIM_MODULES = (
    "habitat_vlnr1.sim.datasets",
    "habitat_vlnr1.sim.sensors",
    "habitat_vlnr1.sim.expert",
    "habitat_vlnr1.sim.measures",
    "habitat_vlnr1.sim.gym_env",
)
# What Habitat-Baselines looks up by name in the main process.
BASELINES_MODULES = (
    "habitat_vlnr1.obs_transform",
    "habitat_vlnr1.policy",
    "habitat_vlnr1.baselines",
    "habitat_vlnr1.mixture",
    "habitat_vlnr1.vlnce.policies",
    "habitat_vlnr1.memory_policy",
    "habitat_vlnr1.evaluator",
    "habitat_vlnr1.trainers.export",
    "habitat_vlnr1.trainers.convert",
    "habitat_vlnr1.trainers.il",
    "habitat_vlnr1.trainers.sft",
    "habitat_vlnr1.trainers.dagger",
    "habitat_vlnr1.trainers.rft",
    "habitat_vlnr1.trainers.doctor",
)


def register_sim() -> None:
    """Registers dataset, sensors and measures, with their configs; harmless when repeated."""
    for name in SIM_MODULES:
        import_module(name)


def register() -> None:
    """Registers everything; harmless when repeated."""
    register_sim()
    for name in BASELINES_MODULES:
        import_module(name)
