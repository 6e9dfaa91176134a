"""Registering, Hydra's search path, and that every task and protocol composes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import habitat
import pytest
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config
from omegaconf import OmegaConf

from habitat_vlnr1.config import action_space, edited, import_modules, registered_policy
from habitat_vlnr1.optimisation import accumulation
from habitat_vlnr1.register import BASELINES_MODULES, register, register_sim
from habitat_vlnr1.results import protocol_text
from hydra_plugins.habitat_vlnr1_plugin import HabitatVLNR1Plugin, config_roots
from tests.paths import CONFIGS, ROOT, SIM_CONFIGS

MEASURES = ["OracleSuccess", "OracleNavigationError", "PathLength", "StepsTaken", "NDTW", "SDTW"]
SENSORS = ["VLNR1InstructionSensor", "VLNR1ClockSensor", "VLNR1ExpertSensor", "VLNR1DescriptionSensor"]

PROTOCOLS = {  # turn angle, HFOV, sliding, camera and agent height, width, height
    "r2r": (15, 90, True, 1.25, 1.5, 224, 224),
    "rxr": (30, 79, False, 0.88, 0.88, 640, 480),
    "navid": (30, 90, True, 1.25, 1.5, 640, 480),
    "navila": (15, 90, True, 1.25, 1.5, 512, 512),
    "streamvln": (15, 79, True, 1.25, 1.5, 640, 480),
}


def test_register_can_be_repeated():
    register()
    register()
    register_sim()
    assert all(habitat.registry.get_dataset(name) for name in ("VLN-CE-v1", "RxR-VLN-CE-v1"))
    assert all(habitat.registry.get_measure(name) for name in MEASURES)
    assert all(habitat.registry.get_sensor(name) for name in SENSORS)
    for name in ("VLNR1Policy", "RandomPolicy", "ForwardOnlyPolicy", "OraclePolicy"):
        assert baseline_registry.get_policy(name) is not None
    assert baseline_registry.get_obs_transformer("LongShortMemory") is not None
    assert all(name in sys.modules for name in BASELINES_MODULES)


def test_the_plugin_appends_both_roots():
    appended = []
    search_path = SimpleNamespace(append=lambda provider, path: appended.append(path))
    HabitatVLNR1Plugin().manipulate_search_path(search_path)
    assert appended == [root.as_uri() for root in config_roots()]
    assert all(root.is_dir() for root in config_roots())


@pytest.mark.parametrize("task", ["embedded", "embedded_rustic", "r2r", "r2r_test", "rxr", "rxr_test"])
@pytest.mark.parametrize("protocol", ["embedded", *PROTOCOLS])
def test_every_task_composes_with_every_protocol(task, protocol):
    config = get_config("sim_test.yaml", [f"vlnr1/task={task}", f"vlnr1/protocol={protocol}"], SIM_CONFIGS)
    ours, sim = config.vlnr1.protocol, config.habitat.simulator
    assert (ours.name, config.vlnr1.task.name) == (protocol, task.removesuffix("_test"))
    camera = sim.agents.main_agent.sim_sensors.rgb_sensor
    assert [camera.width, camera.height, camera.hfov] == [ours.width, ours.height, ours.hfov]
    assert list(camera.position) == [0, ours.camera_height, 0]
    assert (sim.turn_angle, sim.forward_step_size) == (ours.turn_angle, ours.forward_step)
    assert sim.habitat_sim_v0.allow_sliding == ours.sliding
    assert (sim.agents.main_agent.height, sim.agents.main_agent.radius) == (ours.agent_height, ours.agent_radius)
    assert config.habitat.environment.max_episode_steps == ours.max_steps
    assert list(config.habitat.task.actions) == ["stop", "move_forward", "turn_left", "turn_right"]
    assert list(config.habitat.gym.obs_keys) == ["rgb", "vlnr1_instruction", "vlnr1_clock"]
    for name in ("success", "oracle_success", "ndtw"):
        if not task.endswith("_test"):
            assert config.habitat.task.measurements[name].success_distance == ours.success_distance
    assert OmegaConf.missing_keys(config.habitat) <= {"habitat.simulator.agents_order"}
    dataset = OmegaConf.to_object(config.habitat.dataset)
    assert dataset.type == ("RxR-VLN-CE-v1" if task.startswith("rxr") else "VLN-CE-v1")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocols_words_follow_its_numbers(name):
    ours = get_config("sim_test.yaml", [f"vlnr1/protocol={name}"], SIM_CONFIGS).vlnr1.protocol
    keys = ("turn_angle", "hfov", "sliding", "camera_height", "agent_height", "width", "height")
    assert tuple(ours[key] for key in keys) == PROTOCOLS[name]
    assert (ours.max_steps, ours.success_distance) == (500, 3.0)
    assert action_space(OmegaConf.create({"vlnr1": {"protocol": ours}})).options() == [
        "A. Move forward 25 cm",
        f"B. Turn left {PROTOCOLS[name][0]} degrees",
        f"C. Turn right {PROTOCOLS[name][0]} degrees",
        "D. Stop",
    ]
    assert protocol_text(ours).startswith(f"protocol {name}: forward_step 0.25, turn_angle {PROTOCOLS[name][0]}, ")


def test_extra_sensors_are_added_by_config():
    config = get_config("sim_test.yaml", ["+vlnr1/sensors=[expert,description]"], SIM_CONFIGS)
    assert list(config.habitat.gym.obs_keys)[-2:] == ["vlnr1_expert", "vlnr1_description"]
    assert config.habitat.task.lab_sensors.vlnr1_expert.type == "VLNR1ExpertSensor"
    observed, exported = (
        config.habitat.task.lab_sensors.vlnr1_description,
        config.vlnr1.extra_sensors.vlnr1_description,
    )
    assert exported == {**observed, "cells": 3}  # cells are for the export's warm-up alone


def test_modules_of_the_user_are_imported_and_a_wrong_name_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text("seen = True")
    monkeypatch.syspath_prepend(tmp_path)
    import_modules(get_config("vlnr1_sft.yaml", ["vlnr1.imports=[my_parts]"], CONFIGS))
    assert sys.modules["my_parts"].seen
    with pytest.raises(ValueError, match=r"vlnr1.imports: 'my_partz' cannot be imported \(No module named"):
        import_modules(get_config("vlnr1_sft.yaml", ["vlnr1.imports=[my_partz]"], CONFIGS))
    with pytest.raises(ValueError, match=r"policies.mine: no policy 'MyPolicy' is registered; .* vlnr1.imports"):
        registered_policy("vlnr1.eval.policies.mine", "MyPolicy")


OWN = {"r2r": "r2r", "rxr": "rxr"}
"""Task → its own protocol; of the others it is embedded."""
SIM_GROUPS = ROOT / "configs/habitat/vlnr1"


def names(group):
    return sorted(file.stem for file in group.glob("*.yaml"))


TASKS = [name for name in names(SIM_GROUPS / "task") if name != "vln" and not name.endswith(("_test", "_eqa"))]


def test_two_tasks_or_protocols_never_share_a_folder():
    """… and what a set-up trains on is what its tasks are exported to under its protocol."""
    made_by = {}
    for task in TASKS:
        config = get_config("vlnr1_export.yaml", [f"vlnr1/task={task}"], CONFIGS)
        for protocol in names(SIM_GROUPS / "protocol"):
            source = edited(config, **{"vlnr1.protocol.name": protocol}).vlnr1.data.source
            assert source == (task if protocol == OWN.get(task, "embedded") else f"{task}_{protocol}")
            assert made_by.setdefault(source, (task, protocol)) == (task, protocol)
    assert len(made_by) == 48
    for setup in names(Path(CONFIGS) / "vlnr1/setup"):
        ours = get_config("vlnr1_rft.yaml", [f"vlnr1/setup={setup}"], CONFIGS).vlnr1
        assert made_by[ours.data.source] == (ours.task.name, ours.protocol.name)
        for source in (*ours.data.sources, *ours.data.rft_records):
            assert made_by[source][1] == ours.protocol.name
    mine = ["vlnr1/task=r2r", "vlnr1/protocol=r2r", "vlnr1.task.name=mine"]
    assert get_config("vlnr1_export.yaml", mine, CONFIGS).vlnr1.data.source == "mine"


@pytest.mark.parametrize("setup", ["r2r_rxr", "r2r", "cross_domain"])
@pytest.mark.parametrize("model", ["qwen2_vl_2b", "qwen2_vl_7b"])
@pytest.mark.parametrize(("stage", "learning_rate"), [("sft", 5e-6), ("rft", 1e-6)])
def test_the_papers_presets_compose(setup, model, stage, learning_rate):
    groups = [f"vlnr1/setup={setup}", f"vlnr1/model={model}", f"vlnr1/{stage}=paper", "vlnr1/deepspeed=zero3"]
    world = ["vlnr1/task=r2r", "vlnr1/protocol=r2r", "vlnr1/memory=long_short"]
    config = get_config(f"vlnr1_{stage}.yaml", [*world, *groups], CONFIGS)
    assert config.vlnr1[stage].learning_rate == learning_rate
    assert config.vlnr1[stage].deepspeed.zero_optimization.stage == 3
    assert config.vlnr1.data.sources == (["r2r", "rxr_r2r"] if setup == "r2r_rxr" else ["r2r"])
    wanted = {"r2r_rxr": ["r2r", "rxr_r2r"], "r2r": ["r2r"], "cross_domain": ["rxr_r2r"]}[setup]
    assert config.vlnr1.data.rft_records == dict.fromkeys(wanted, 10000)
    if stage == "sft":
        assert config.vlnr1.sft.per_device_train_batch_size * accumulation(config, "sft", 8) * 8 == 64
    else:
        assert (config.vlnr1.rft.beta, config.vlnr1.rft.num_generations) == (0.04, 8)
