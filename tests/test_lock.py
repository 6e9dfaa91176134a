"""A folder has one writer; the lock of a process that was killed is gone with it."""

import re
import subprocess
import sys

import pytest

from habitat_vlnr1 import lock
from habitat_vlnr1.episode_log import EpisodeLog
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.lock import FolderInUse, FolderLock

HOLD = """
import sys, time
from habitat_vlnr1.lock import FolderLock
lock = FolderLock(sys.argv[1])
print("held", flush=True)
time.sleep(99)
"""
PATIENT = HOLD.replace("sys.argv[1]", "sys.argv[1], patient=True").replace("time.sleep(99)", "")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.1)


def test_another_process_is_told_who_writes_and_may_go_on_after_a_kill(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(FolderInUse, match=rf"is being written by process {holder.pid} on \S+ since \d{{4}}-.*: wait"):
        FolderLock(tmp_path)
    holder.kill()
    holder.wait()
    with FolderLock(tmp_path) as mine:
        pass
    mine.release()
    FolderLock(tmp_path).release()
    assert [file.name for file in tmp_path.iterdir()] == [".run.lock"]


def test_one_folder_of_results_has_one_evaluation(tmp_path):
    log = EpisodeLog(tmp_path, {})
    with pytest.raises(FolderInUse, match=re.escape(str(tmp_path))):
        EpisodeLog(tmp_path, {})
    log.close()
    EpisodeLog(tmp_path, {}).close()


def test_one_shard_of_an_export_has_one_writer(tmp_path):
    writer = EpisodeWriter(tmp_path, {}, "0")
    EpisodeWriter(tmp_path, {}, "1").close()
    with pytest.raises(FolderInUse):
        EpisodeWriter(tmp_path, {}, "0")
    writer.close()
    EpisodeWriter(tmp_path, {}, "0").close()


def test_what_another_process_makes_is_waited_for_where_that_is_asked(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    holder.stdout.readline()
    waits = subprocess.Popen(
        [sys.executable, "-c", f"from habitat_vlnr1 import lock\nlock.WAIT = 0.1\n{PATIENT}", str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = waits.stdout.readline()
    assert f"{tmp_path} is being written by process {holder.pid} on " in said
    assert said.endswith(": waiting for its end\n")
    holder.kill()
    assert waits.communicate()[0] == "held\n"
