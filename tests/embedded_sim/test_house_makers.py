"""Several processes that want the same houses: one makes them, the others wait; one that is killed leaves nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow
ONE_HOUSE = (
    "train_scenes=1, train_episodes_per_scene=1, val_seen_episodes=0, val_unseen_scenes=0, "
    "val_unseen_episodes_per_scene=0"
)
MAKER = f"""
import time
from pathlib import Path
from habitat_embedded_sim.houses import dataset

make_house = dataset._make_house

def make_when_allowed(job):
    job.scenes.mkdir(parents=True)
    Path("begun").open("a").write("x")
    while not Path("allowed").exists():
        time.sleep(0.1)
    return make_house(job)

dataset._make_house = make_when_allowed
dataset.ensure("data", {ONE_HOUSE}, num_workers=1)
print("has them", flush=True)
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True)


def wait_for(condition) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_one_makes_and_the_others_wait_also_when_the_maker_is_killed(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    first = start(MAKER, tmp_path)
    wait_for(begun.exists)
    others = [start(MAKER, tmp_path) for _ in range(2)]
    for other in others:
        assert other.stdout.readline() == "Another process is making houses 'embedded' in data: waiting for its end\n"
    first.kill()
    wait_for(lambda: begun.read_text() == "xx")  # one of the others begins anew
    assert len(list(tmp_path.glob("data/.embedded.making-*"))) == 1
    (tmp_path / "allowed").touch()
    for other in others:
        assert other.communicate()[0] == "has them\n" and other.returncode == 0
    assert begun.read_text() == "xx"
    left = {path.name for path in tmp_path.glob("data/*")} - {".embedded.lock"}
    assert left == {"datasets", "scene_datasets"}


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_the_workers_of_a_killed_maker_end(tmp_path: Path) -> None:
    code = f"from habitat_embedded_sim.houses import ensure; ensure('data', {ONE_HOUSE})"
    maker = start(f"if __name__ == '__main__':\n    {code}", tmp_path)
    wait_for(lambda: any("spawn_main" in " ".join(child.cmdline()) for child in psutil.Process(maker.pid).children()))
    children = psutil.Process(maker.pid).children()
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert psutil.wait_procs(children, timeout=240)[1] == []
