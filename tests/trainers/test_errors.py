"""What is wrong with input ends a command with one line and a documented status, and a program with an exception."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from habitat_vlnr1.errors import RecordError, VLNR1Error
from habitat_vlnr1.trainers.base import ERROR_STATUS, JobFailed, errors_in_one_line
from tests.trainers.test_convert import convert


@pytest.fixture
def as_command(monkeypatch):
    """As if Hydra's `main` had been called."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    run = SimpleNamespace(mode=RunMode.RUN)
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: run))
    return run


def test_a_command_ends_with_the_line(as_command, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        convert("parquet", tmp_path)
    assert ended.value.code == ERROR_STATUS
    said = capsys.readouterr().err
    assert said.startswith(f"error: no VLN-Ego data in {tmp_path}") and said.count("\n") == 1


def test_in_a_sweep_the_line_ends_its_job_alone(as_command, tmp_path, capsys):
    as_command.mode = RunMode.MULTIRUN
    with pytest.raises(JobFailed):
        convert("parquet", tmp_path)
    assert capsys.readouterr().err.startswith(f"error: no VLN-Ego data in {tmp_path}")


def test_hydra_full_error_shows_where_it_comes_from(as_command, tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RecordError, match="no VLN-Ego data"):
        convert("parquet", tmp_path)


def test_in_a_program_of_ones_own_it_is_an_exception(tmp_path):
    with pytest.raises(VLNR1Error, match="no VLN-Ego data"):
        convert("parquet", tmp_path)


def test_a_fault_of_the_program_keeps_its_traceback(as_command):
    with pytest.raises(ZeroDivisionError), errors_in_one_line():
        raise ZeroDivisionError


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    (tmp_path / "in/train").mkdir(parents=True)
    (tmp_path / "in/train/meta.json").touch()
    command = [sys.executable, "-m", "habitat_baselines.run", "--config-name=vlnr1_convert", "vlnr1.convert.to=card"]
    done = subprocess.run(
        [*command, "vlnr1.convert.input=in/train"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == ERROR_STATUS
    assert "error: in/train/meta.json: empty; delete the folder and export again" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
