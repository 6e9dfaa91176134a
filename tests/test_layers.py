"""Imports run downwards only: ground floor, then sim | lvlm, then what joins them."""

import subprocess
import sys

import pytest

GROUND = ["actions", "memory", "prompt", "rewards", "records", "sharegpt", "parquet", "card", "submission"]


def imported_by(module: str) -> set[str]:
    code = f"import {module}, sys; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("name", GROUND)
def test_ground_floor_knows_neither_torch_nor_habitat(name):
    modules = imported_by(f"habitat_vlnr1.{name}")
    assert not {"torch", "habitat", "habitat_sim", "transformers"} & modules


def test_lvlm_wing_never_sees_habitat():
    modules = imported_by("habitat_vlnr1.lvlm.checkpoint, habitat_vlnr1.lvlm.decoding, habitat_vlnr1.lvlm.inputs")
    assert not {"habitat", "habitat_sim", "habitat_baselines"} & modules


def test_sim_wing_never_sees_transformers():
    modules = imported_by("habitat_vlnr1.sim.sensors, habitat_vlnr1.sim.measures, habitat_vlnr1.sim.env_factory")
    assert "transformers" not in modules
    assert not any(module.startswith("habitat_vlnr1.lvlm") for module in modules)
