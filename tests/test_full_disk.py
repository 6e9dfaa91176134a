"""Where nothing more can be written, one line says so, what is whole stays, and the next start goes on."""

import os
import resource
import signal
import subprocess
import sys
from unittest import mock

import pytest

from habitat_vlnr1.episode_log import EpisodeLog, episode_line, read_episodes
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.files import DiskFull, full_disk_is_said, write_atomically
from habitat_vlnr1.records import Episode, VLNEgo

WRITE = """
import sys
from tests.test_full_disk import evaluate, export
{"evaluate": evaluate, "export": export}[sys.argv[1]](sys.argv[2])
"""


def evaluate(folder):
    log = EpisodeLog(folder, {})
    try:
        for number in range(len(log.lines), 40):
            facts = {"episode_id": str(number), "scene_id": "a", "steps": 1, "seconds": 0.1, "invalid_answers": 0}
            log.append(episode_line({"SR": 1.0}, **facts, instruction="go " * 100))
    finally:
        log.close()


def export(folder):
    writer = EpisodeWriter(folder, {"split": "train"})
    try:
        for number in range(len(writer.done), 40):
            episode = Episode(str(number), "a", "go " * 100, (1, 0))
            writer.write(episode, [b"\xff\xd8" + b"." * 50 + b"\xff\xd9"] * 2)
    finally:
        writer.close()


def limit():
    """No file may grow beyond 6,000 bytes: as on a full disk, the line in hand is cut."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


@pytest.mark.parametrize("stage", [evaluate, export])
def test_lines_are_whole_and_the_next_start_goes_on(tmp_path, stage):
    command = [sys.executable, "-B", "-c", WRITE, stage.__name__, str(tmp_path)]
    # The limit would meet the coverage's own file, too.
    unobserved = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, env=unobserved)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("habitat_vlnr1.files.DiskFull: ") and "make room and start" in last
    assert 5000 < (tmp_path / "episodes.jsonl").stat().st_size <= 6000
    stage(tmp_path)
    if stage is evaluate:
        assert [line["episode_id"] for line in read_episodes(tmp_path / "episodes.jsonl")] == [*map(str, range(40))]
    else:
        ego = VLNEgo(tmp_path)
        ego.check_frames()
        assert [episode.episode_id for episode in ego.episodes] == [*map(str, range(40))]


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    file = tmp_path / "summary.json"
    write_atomically(file, b"old")
    with (
        mock.patch("pathlib.Path.write_bytes", side_effect=OSError(28, "No space left on device")),
        pytest.raises(DiskFull, match=r"summary.json: No space left on device: make room and start again"),
    ):
        write_atomically(file, b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("summary.json", b"old")]


def test_a_librarys_own_error_is_a_full_disk_only_where_the_disk_is_full(tmp_path):
    with pytest.raises(RuntimeError, match="unexpected pos"), full_disk_is_said(tmp_path):
        raise RuntimeError("unexpected pos 64 vs 0")
    with (
        mock.patch("shutil.disk_usage", return_value=mock.Mock(free=0)),
        pytest.raises(DiskFull, match="no space left on device"),
        full_disk_is_said(tmp_path / "checkpoints"),
    ):
        raise RuntimeError("unexpected pos 64 vs 0")
