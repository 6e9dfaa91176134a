"""The stand-in is found by name, gives way to the real modules, costs nothing at start-up, and is installed right."""

import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from habitat_embedded_sim import finder
from hatchling.builders.wheel import WheelBuilder

DISTRIBUTION = Path(finder.__file__).parents[1]


def run_python(code: str, path: Path | None = None) -> str:
    """The output of a fresh interpreter, `path` in front of its search path."""
    env = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def worker_version() -> str:
    import habitat_sim

    return habitat_sim.__version__


def test_a_fresh_interpreter_finds_the_stand_in() -> None:
    code = "import habitat_sim, magnum, corrade; print(habitat_sim.__version__)"
    assert run_python(code).endswith("embedded")


@pytest.mark.parametrize("name", sorted(finder.NAMES))
def test_a_real_module_wins(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("real = True\n")
    assert run_python(f"import {name}; print({name}.real)", tmp_path) == "True"


def test_another_magnum_is_named(tmp_path: Path) -> None:
    (tmp_path / "magnum.py").write_text("")
    code = "try:\n import habitat_sim\nexcept ImportError as error: print(error)"
    assert "another project's" in run_python(code, tmp_path)


def test_start_up_imports_the_finder_only() -> None:
    code = "import sys; print(sorted(m for m in sys.modules if m.split('.')[0] in ('habitat_embedded_sim', 'numpy')))"
    assert run_python(code) == "['habitat_embedded_sim', 'habitat_embedded_sim.finder']"


def test_forkserver_workers_find_it() -> None:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(worker_version).endswith("embedded")


def test_install_appends_once() -> None:
    finder.install()
    assert sys.meta_path.count(finder.StandInFinder) == 1


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_pth_lies_at_the_root_of_the_wheel(version: str, tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(DISTRIBUTION)).build(directory=str(tmp_path), versions=[version])
    names = zipfile.ZipFile(wheel).namelist()
    assert "habitat_embedded_sim.pth" in names
    assert ("habitat_embedded_sim/finder.py" in names) == (version == "standard")
    # site reads .pth files in alphabetical order: the path of an editable install must come first.
    assert all(name <= "habitat_embedded_sim.pth" for name in names if name.endswith(".pth"))


def test_what_is_missing_says_so_in_one_line() -> None:
    import habitat_sim
    import magnum

    for use in (
        lambda: habitat_sim.physics.VelocityControl(),
        lambda: habitat_sim.physics.MotionType.KINEMATIC,
        lambda: habitat_sim.ReplayRenderer.create_batch_replay_renderer,
        lambda: habitat_sim.attributes,
        lambda: habitat_sim.PathFinder().build,
        lambda: habitat_sim.agent.controls.PyRobotNoisyActuationSpec(0.25),
        lambda: magnum.Matrix4.perspective_projection,
        lambda: magnum.Vector3(1.0).flipped,
        lambda: magnum.math.popcount,
        lambda: magnum.trade.ImporterManager().load_and_instantiate("AnySceneImporter"),
    ):
        with pytest.raises(NotImplementedError, match="real habitat-sim") as caught:
            use()
        assert "\n" not in str(caught.value)
