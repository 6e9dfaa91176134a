"""A stock run of habitat-baselines, and any program with Hydra, is the same with this package as without it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.embedded_sim import nav_data

pytest.importorskip("habitat_embedded_sim")

PPO = """# @package _global_
defaults:
  - /benchmark/nav/pointnav: pointnav_base
  - /habitat_baselines: habitat_baselines_rl_config_base
  - _self_
habitat:
  dataset:
    type: PointNav-v1
habitat_baselines:
  trainer_name: ppo
  verbose: false
  num_environments: 1
  total_num_steps: 16
  num_updates: -1
  num_checkpoints: 1
  checkpoint_folder: checkpoints
  tensorboard_dir: tb
  rl:
    ppo:
      num_steps: 8
      num_mini_batch: 1
      hidden_size: 16
"""
SCRIPT = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["habitat_vlnr1"] = None  # the Hydra plugin cannot be imported then
import habitat, torch
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config
from habitat_baselines.run import execute_exp
from omegaconf import OmegaConf
config = get_config("ppo.yaml", sys.argv[2:], ".")
execute_exp(config, "train")
names = {
    f"{kind}/{name}": f"{entry.__module__}.{entry.__qualname__}"
    for registry in (habitat.registry, baseline_registry)
    for kind, entries in registry.mapping.items() for name, entry in entries.items()
}
state = torch.load("checkpoints/latest.pth", weights_only=False)["state_dict"]
json.dump({
    "config": OmegaConf.to_yaml(config), "names": names,
    "weights": {key: value.double().sum().item() for key, value in state.items()},
}, open("result.json", "w"))
"""


@pytest.mark.slow
def test_a_stock_run_is_unchanged(tmp_path, monkeypatch):
    monkeypatch.setenv("HABITAT_ENV_DEBUG", "1")
    results = {}
    for mode in ("without", "with"):
        folder = tmp_path / mode
        folder.mkdir()
        data_path, scenes_dir = nav_data.write_dataset(folder, ("one",), instructions=False)
        (folder / "ppo.yaml").write_text(PPO)
        camera = "habitat.simulator.agents.main_agent.sim_sensors"
        sizes = [f"{camera}.{s}_sensor.{side}=32" for s in ("rgb", "depth") for side in ("width", "height")]
        paths = [f"habitat.dataset.data_path={Path(data_path).name}", "habitat.dataset.scenes_dir=."]
        assert scenes_dir == str(folder)
        subprocess.run([sys.executable, "-c", SCRIPT, mode, *paths, *sizes], cwd=folder, check=True)
        results[mode] = json.loads((folder / "result.json").read_text())
    without, ours = results["without"], results["with"]
    assert ours["config"] == without["config"]
    assert ours["weights"] == without["weights"]
    assert without["names"].items() <= ours["names"].items()
    added = ours["names"].keys() - without["names"].keys()
    assert any("VLNR1Policy" in name for name in added)
    assert all(ours["names"][name].startswith("habitat_vlnr1.") for name in added)


HYDRA_ALONE = """
import json, os, sys
before = sys.getdlopenflags()
sys.setdlopenflags(before | os.RTLD_GLOBAL)
wanted = sys.getdlopenflags()
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
with initialize_config_dir(sys.argv[1], version_base=None):
    compose("config")
    paths = [entry.provider for entry in GlobalHydra.instance().config_loader().get_search_path().get_path()]
print(json.dumps({
    "flags": sys.getdlopenflags() == wanted, "paths": paths,
    "seen": "hydra_plugins.habitat_vlnr1_plugin" in sys.modules,
    "heavy": sorted({"habitat", "torch", "transformers", "numpy"} & set(sys.modules)),
}))
"""


def test_a_program_with_hydra_and_without_habitat_is_unchanged(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    done = subprocess.run(
        [sys.executable, "-c", HYDRA_ALONE, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout) == {
        "flags": True,
        "paths": ["hydra", "main", "schema"],
        "seen": True,
        "heavy": [],
    }


def test_where_habitat_sim_is_in_use_its_global_symbols_are_undone():
    code = (
        "import os, sys; sys.setdlopenflags(sys.getdlopenflags() | os.RTLD_GLOBAL); import habitat;"
        "from habitat.config.default import get_config; print(bool(sys.getdlopenflags() & os.RTLD_GLOBAL))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
