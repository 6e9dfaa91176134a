"""The embedded simulator against the real habitat-sim, in one generated house (docs/results.md has ten).

Each simulator runs in a process of its own, by way of benchmarks/simulator_agreement.py.
"""

import importlib.util
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
from habitat_embedded_sim.finder import STAND_IN_DIR

from tests.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "simulator_agreement.py"
EMBEDDED = importlib.util.find_spec("habitat_sim").origin.startswith(STAND_IN_DIR)

pytestmark = [
    pytest.mark.real_sim,
    pytest.mark.skipif(EMBEDDED, reason="the real habitat-sim is not installed: nothing to compare with"),
]


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    spec = importlib.util.spec_from_file_location("simulator_agreement", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("house")
    options = Namespace(houses=1, style="plain", forward_step=0.5, turn_angle=30.0)
    script.make_houses(folder, options)
    for simulator in ("real", "embedded"):
        command = [sys.executable, SCRIPT, "--worker", simulator, *script.arguments(folder, options)]
        subprocess.run(command, check=True)
    ((ours, real),) = script.results(folder)
    return script.compare(ours, real)


def test_the_same_poses_show_the_same(differences: dict[str, np.ndarray]) -> None:
    assert differences["colour"].mean() < 0.5
    assert np.median(differences["depth"]) < 1e-4 and np.percentile(differences["depth"], 99) < 1e-2
    assert differences["semantic"].mean() > 0.99 and differences["names"].all()


def test_the_same_points_are_navigable_at_the_same_height(differences: dict[str, np.ndarray]) -> None:
    assert differences["navigable"].mean() > 0.98 and differences["iou"].min() > 0.97
    assert abs(np.median(differences["height"])) < 0.01


def test_geodesic_distances_agree(differences: dict[str, np.ndarray]) -> None:
    assert differences["reachable"].all()
    assert np.abs(differences["geodesic"]).mean() < 0.01 and np.abs(differences["geodesic"]).max() < 0.1


@pytest.mark.parametrize("kind", ["sliding", "no sliding"])
def test_a_step_ends_at_the_same_place(differences: dict[str, np.ndarray], kind: str) -> None:
    assert differences[f"{kind}_free"].max() < 1e-3
    assert np.median(differences[f"{kind}_step"]) < 0.02 and differences[f"{kind}_collided"].mean() > 0.97
