"""Workers that are killed, hang or crash at an episode: the run goes on, and gives what an undisturbed one gives."""

import os
import signal
import subprocess
import sys
from subprocess import PIPE

import numpy as np
import psutil
import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.sim import env_factory
from habitat_vlnr1.sim.env_factory import VLNVectorEnvFactory
from habitat_vlnr1.sim.vector_env import LOST, make_env, newly_lost, walk_at
from tests.paths import ROOT, SIM_CONFIGS

houses = pytest.importorskip("habitat_embedded_sim.houses")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("deaths")
    houses.ensure(
        root / "data", train_scenes=2, train_episodes_per_scene=2, val_seen_episodes=1, val_unseen_scenes=1,
        val_unseen_episodes_per_scene=1, forward_step=0.5, num_workers=1,
    )  # fmt: skip
    return root


@pytest.fixture
def envs(data, monkeypatch):
    """Opens environments, two unless told otherwise; `make` stands in for `make_env`."""
    monkeypatch.chdir(data)
    opened = []

    def start(*overrides, make=make_env):
        monkeypatch.setattr(env_factory, "make_env", make)
        settings = ["vlnr1.task.scenes=null", "+vlnr1/sensors=[expert]", *overrides]
        opened.append(VLNVectorEnvFactory().construct_envs(get_config("sim_test.yaml", settings, SIM_CONFIGS)))
        return opened[-1]

    yield start
    for made in opened:
        made.close()


def walk_all(envs, disturb=lambda envs, step: None):
    """Every episode once, led by the expert: `{episode: (sum of each view, clocks, last info)}`, and what was lost."""
    views = envs.reset()
    left, lost, walked, step = list(envs.number_of_episodes), {}, {}, 0
    keys = [episode.episode_id for episode in envs.current_episodes()]
    seen = [[view] for view in views]
    while any(count > 0 for count in left):
        disturb(envs, step)
        step += 1
        outputs = envs.step([int(view["vlnr1_expert"][0]) for view in views])
        views = [output[0] for output in outputs]
        for i, (view, _, done, info) in enumerate(outputs):
            if not done:
                seen[i].append(view)
                continue
            if LOST not in info and left[i] > 0:
                left[i] -= 1
                clocks = np.array([view["vlnr1_clock"] for view in seen[i]])
                info = {key: value for key, value in info.items() if isinstance(value, float | list)}
                walked[keys[i]] = [int(view["rgb"].astype(int).sum()) for view in seen[i]], clocks, info
            for (_, name), why in newly_lost(envs, i).items():
                lost[name] = why
                left[i] -= 1
            keys[i], seen[i] = envs.call_at(i, "current_episode", {"all_info": True}).episode_id, [view]
    return walked, lost


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name][0] == other[name][0] and one[name][2] == other[name][2], name
        for clocks in (one[name][1], other[name][1]):  # one rollout, every step
            assert len(set(clocks[:, 0])) == 1 and clocks[:, 1].tolist() == list(range(len(clocks)))


def test_killed_and_hung_workers_change_nothing(envs):
    undisturbed, _ = walk_all(envs())

    def disturb(envs, step):
        if step in (2, 9):
            os.kill(envs._workers[step % 2].pid, signal.SIGKILL)

    walked, lost = walk_all(envs(), disturb)
    assert_equal(walked, undisturbed)
    assert not lost

    def hang(envs, step):
        if step == 4:
            envs._timeout = 3.0
            os.kill(envs._workers[0].pid, signal.SIGSTOP)
        if step == 5:
            envs._timeout = 600.0

    made = envs()
    first = made._workers[0].pid
    walked, lost = walk_all(made, hang)
    assert_equal(walked, undisturbed)
    assert not lost and made._workers[0].pid != first


def test_plans_carried_out_by_a_worker_are_single_steps_also_when_it_is_killed(envs):
    """Where no view is wanted nothing is rendered; views that are, rewards, places and measures are the same."""

    def walk(made, size, kill=False):
        seen = []
        made.reset()
        for number in range(2):
            truth = made.call_at(0, "recorded").actions
            for start in range(0, len(truth), size):
                actions = [int(action) for action in truth[start : start + size]]
                shown = [(start + place) % 2 == 0 for place in range(len(actions))]
                if kill and (number, start) == (1, size):
                    os.kill(made._workers[0].pid, signal.SIGKILL)
                seen += zip(walk_at(made, 0, actions, shown), shown, strict=True)
        return seen

    one = "habitat_baselines.num_environments=1"
    single, plans, killed = walk(envs(one), 1), walk(envs(one), 4), walk(envs(one), 4, kill=True)
    assert sum("rgb" not in output[0] for output, _ in plans) > 3
    for several in (plans, killed):
        assert len(several) == len(single)
        for ((view, *rest), shown), ((wanted, *wanted_rest), _) in zip(several, single, strict=True):
            assert rest == wanted_rest and view["vlnr1_clock"][1] == wanted["vlnr1_clock"][1]
            assert (view["rgb"] == wanted["rgb"]).all() if "rgb" in view else not shown


@pytest.mark.parametrize("at_reset", [False, True])
def test_an_episode_that_ends_three_workers_is_given_up(envs, at_reset):
    def deadly(config, dataset=None):
        env = make_env(config, dataset)
        inner = env.unwrapped.habitat_env
        step, reconfigure = inner.step, inner.reconfigure

        def dying_step(action, **kwargs):
            if not at_reset and inner.current_episode.episode_id == "2" and inner._elapsed_steps == 2:
                os._exit(7)
            return step(action, **kwargs)

        def dying_reset(config):
            if at_reset and inner.current_episode.episode_id == "2":
                os._exit(7)
            reconfigure(config)

        inner.step, inner.reconfigure = dying_step, dying_reset
        return env

    one = "habitat_baselines.num_environments=1"
    undisturbed, _ = walk_all(envs(one))
    walked, lost = walk_all(envs(one, make=deadly))
    assert list(lost) == ["2"] and lost["2"].startswith("the simulator ended 3 times on it; the last time: its worker")
    del undisturbed["2"]
    assert_equal(walked, undisturbed)


def test_a_worker_that_never_gets_to_an_episode_ends_the_run(envs):
    def stillborn(config, dataset=None):
        os._exit(9)

    with pytest.raises(RuntimeError, match=r"environment 0: its worker process ended \(exit code 9.*, 3 times"):
        envs("habitat_baselines.num_environments=1", make=stillborn)


MAIN = """
import ctypes, os, sys
from habitat_baselines.config.default import get_config
from habitat_vlnr1.sim.env_factory import VLNVectorEnvFactory
from habitat_vlnr1.sim import env_factory
from habitat_vlnr1.sim.vector_env import make_env

def stuck_env(config, dataset=None):
    env = make_env(config, dataset)
    # Compiled code that keeps the interpreter's lock: no thread and no handler of this process runs again.
    env.step = lambda *args, **kwargs: [print("stuck", flush=True), ctypes.PyDLL(None).sleep(3600)]
    return env

if __name__ == "__main__":
    env_factory.make_env = stuck_env
    settings = ["vlnr1.task.scenes=null", "habitat_baselines.num_environments=2"]
    envs = VLNVectorEnvFactory().construct_envs(get_config("sim_test.yaml", settings, sys.argv[1]))
    envs.reset()
    print(*(worker.pid for worker in envs._workers), flush=True)
    envs.step([1, 1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_workers_that_are_stuck_end_with_a_main_process_that_is_killed(data):
    (data / "main.py").write_text(MAIN)
    command = [sys.executable, "main.py", str(SIM_CONFIGS)]
    main = subprocess.Popen(command, cwd=data, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=PIPE, text=True)
    said = iter(main.stdout.readline, "")
    workers = [psutil.Process(int(pid)) for pid in next(line for line in said if line[0].isdigit()).split()]
    assert len(workers) == 2 and [next(said), next(said)] == ["stuck\n", "stuck\n"]
    family = [*workers, *psutil.Process(main.pid).children(recursive=True)]
    main.kill()
    main.wait()
    assert psutil.wait_procs(family, timeout=60)[1] == []
