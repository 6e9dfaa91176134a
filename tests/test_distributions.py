"""Both distributions as a user gets them: what is in them, and that they work away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.slow
FOLDERS = {"habitat_vlnr1": ROOT, "habitat_embedded_sim": ROOT / "embedded_sim"}
CONFIGS = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both wheels and both sdists; each wheel is built from its sdist."""
    output = tmp_path_factory.mktemp("dist")
    for folder in FOLDERS.values():
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(folder), cwd=output)
    return output


def run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel(built, name):
    return next(built.glob(f"{name}-*.whl"))


def in_wheel(built, name):
    return set(zipfile.ZipFile(wheel(built, name)).namelist())


def in_sdist(built, name):
    with tarfile.open(next(built.glob(f"{name}-*.tar.gz"))) as archive:
        return {member.partition("/")[2] for member in archive.getnames()}


def about(built, name):
    archive = zipfile.ZipFile(wheel(built, name))
    path = next(path for path in archive.namelist() if path.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(path).decode())


def test_the_wheel_has_code_configs_and_plugin_and_nothing_else(built):
    names = in_wheel(built, "habitat_vlnr1")
    assert {f"habitat_vlnr1/{config}" for config in CONFIGS} <= names
    assert {"habitat_vlnr1/py.typed", "hydra_plugins/habitat_vlnr1_plugin.py"} <= names
    top = {name.split("/")[0].partition("-")[0] for name in names}
    assert top == {"habitat_vlnr1", "hydra_plugins"}


def test_the_stand_in_has_its_hook_at_the_root_of_site_packages(built):
    names = in_wheel(built, "habitat_embedded_sim")
    assert {"habitat_embedded_sim.pth", "habitat_embedded_sim/py.typed"} <= names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {
        "habitat_embedded_sim",
        "habitat_embedded_sim.pth",
    }


def test_sdists_hold_what_a_build_and_its_tests_need(built):
    names = in_sdist(built, "habitat_vlnr1")
    assert {*CONFIGS, "LICENSE", "README.md", "tests/test_distributions.py"} <= names
    assert not [name for name in names if name.startswith((".", "data/", "embedded_sim/")) and name != ".gitignore"]
    assert {"LICENSE", "README.md", "habitat_embedded_sim.pth"} <= in_sdist(built, "habitat_embedded_sim")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_metadata_say_whose_and_what(built, name):
    metadata = about(built, name)
    assert metadata["License-Expression"] == "MIT"
    assert any(path.endswith("licenses/LICENSE") for path in in_wheel(built, name))
    assert (
        metadata["Author"] and metadata["Summary"] and metadata["Requires-Python"] and metadata.get_all("Classifier")
    )
    assert metadata["Name"] in metadata.get_payload()  # the README


def test_the_extra_takes_the_stand_in_of_this_repository(built):
    from packaging.requirements import Requirement

    asked = [Requirement(line) for line in about(built, "habitat_vlnr1").get_all("Requires-Dist")]
    extra = next(requirement for requirement in asked if requirement.name == "habitat-embedded-sim")
    assert extra.marker is not None and extra.marker.evaluate({"extra": "embedded"})
    assert about(built, "habitat_embedded_sim")["Version"] in extra.specifier


def test_the_doctor_runs_from_the_wheels_in_another_folder(built, tmp_path):
    """A new environment: the two wheels, and the libraries (not the checkout) of this one."""
    home, elsewhere = tmp_path / "env", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(home, with_pip=False)
    python = str(home / "bin" / "python")
    for name in FOLDERS:
        install = ("install", "--quiet", "--no-deps", "--no-index", str(wheel(built, name)))
        run(sys.executable, "-m", "pip", "--python", python, *install, cwd=elsewhere)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere).strip())
    # A folder that a .pth file names is searched, but its own .pth files, those of editable installs, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    where = "import habitat_vlnr1, habitat_embedded_sim as sim; print(habitat_vlnr1.__file__); print(sim.__file__)"
    for file in run(python, "-c", where, cwd=elsewhere).split():
        assert Path(file).is_relative_to(site)
    said = run(python, "-m", "habitat_baselines.run", "--config-name=vlnr1_doctor", cwd=elsewhere)
    assert "vlnr1_doctor, task embedded" in said and "0 ERROR" in said
