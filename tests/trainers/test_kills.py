"""The short form of `benchmarks/kills.py`: an export that is killed, simulator and all, ends as an undisturbed one."""

import importlib.util
import time

import psutil
import pytest

from tests.paths import ROOT

pytest.importorskip("habitat_embedded_sim")
spec = importlib.util.spec_from_file_location("kills", ROOT / "benchmarks/kills.py")
kills = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kills)


@pytest.mark.slow
def test_a_killed_export_ends_as_an_undisturbed_one(tmp_path):
    stage = kills.Stage("export", tmp_path)
    stage.finish()
    wanted = stage.found()
    assert len(wanted["episodes"]) >= 4 and wanted["frames"]
    stage.clean()
    process = stage.start()
    main = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while not (workers := kills.simulators(main)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    workers[-1].kill()
    lines = tmp_path / "data/vln_ego/killed/train/episodes.jsonl"
    while not (lines.is_file() and lines.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    stage.finish()
    assert kills.compare(wanted, stage.found()) == (0, 0, [])
