"""The environment that runs in a worker, and a VectorEnv that survives the death of one.

A simulator may crash, be killed for its memory or hang. Its worker is then replaced, and the new one is brought to
where the old one was: the same episode, the same actions, the same rollout id. The simulator is deterministic, so
whoever steps the environments gets what an undisturbed run would have given, and need not know. An episode at which
three workers have ended is given up: its step says `done` with `info[LOST]`, `newly_lost` names it. An exception in
a worker is a mistake, not a crash: it ends the run in one line.

`walk_at` lets an environment carry out several actions by itself; different environments may be called from different
threads (`side_by_side.py`).
"""

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.forkserver import set_forkserver_preload
from typing import Any

import gym
import numpy as np
from habitat import Dataset, VectorEnv, logger
from habitat.config import read_write
from habitat.config.default import get_agent_config
from habitat.config.default_structured_configs import HabitatSimDepthSensorConfig, HabitatSimSemanticSensorConfig
from habitat.core.vector_env import CALL_COMMAND, RESET_COMMAND, STEP_COMMAND
from habitat.gym import make_gym_from_config
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import import_modules
from habitat_vlnr1.errors import RunError, VLNR1Error
from habitat_vlnr1.lifetime import end_with_main
from habitat_vlnr1.observations import CLOCK, DESCRIPTION
from habitat_vlnr1.sim import MODULES, register_sim


def make_env(config: DictConfig, dataset: Dataset | None = None) -> gym.Env:
    """The gym environment of `config`, with ours and `vlnr1.imports` registered (a worker starts with nothing).

    Interpolations are resolved first: Habitat copies sensor and measure configs out of the tree that they refer to.
    A description needs depth and semantic ids: they are rendered with the RGB camera's geometry, unless the config
    has such sensors itself.
    """
    register_sim()
    import_modules(config)
    config = config.copy()
    with read_write(config):
        OmegaConf.resolve(config.habitat)
        if DESCRIPTION in config.habitat.task.lab_sensors:
            _add_description_cameras(get_agent_config(config.habitat.simulator).sim_sensors)
    return make_gym_from_config(config, dataset)


def _add_description_cameras(cameras: Any) -> None:
    rgb = cameras.rgb_sensor
    geometry = {key: rgb[key] for key in ("width", "height", "hfov", "position", "orientation")}
    cameras.setdefault("depth_sensor", HabitatSimDepthSensorConfig(**geometry, normalize_depth=False))
    cameras.setdefault("semantic_sensor", HabitatSimSemanticSensorConfig(**geometry))


LOST = "vlnr1_lost"
"""In a step's info: why the episode was given up. The other entries are those of the step before it."""
MAX_DEATHS = 3
"""Workers that may end at one episode before it is given up."""
START_TIMEOUT = 600.0
"""Seconds that a new worker has at least for its first answer: it imports, and loads a scene."""
WALK = "walk"
"""The method of an environment that carries out several actions."""
SETTINGS = ("keep_episodes", "silence")
"""Calls that change an environment: a new worker gets them again."""
Key = tuple[str, str]  # scene_id, episode_id


def newly_lost(envs: Any, index: int) -> dict[Key, str]:
    """The episodes, and why, that environment `index` has given up since this was last asked. Threads give up none."""
    return envs.take_lost(index) if isinstance(envs, VLNVectorEnv) else {}


Output = tuple[Any, float, bool, dict[str, Any]]
"""What a step returns: view, reward, done, info."""


def walk_at(envs: VectorEnv, index: int, actions: Sequence[int], shown: Sequence[bool]) -> list[Output]:
    """Let an environment carry out actions, to the end of its episode at most.

    Args:
        shown: for each action whether the camera's view after it is wanted. Where it is not, it may lack `rgb`.

    Returns: what each step returned; after an episode's end the view is the next one's first.
    """
    if isinstance(envs, VLNVectorEnv):
        return envs.walk_at(index, actions, shown)
    outputs: list[Output] = []
    for action in actions:
        envs.async_step_at(index, action)
        outputs.append(envs.wait_step_at(index))
        if outputs[-1][2]:
            break
    return outputs


@dataclass
class Stretch:
    """What an environment has done by itself since it was answered.

    Args:
        outputs: of its steps; none where a walk has just begun.
        view: what is seen now: of the next episode, where the last step has ended one.
        lost: episodes that were given up meanwhile, or that nobody can walk, and why.
    """

    outputs: list[Output]
    view: Any
    lost: dict[Key, str]


def _walks(command: tuple[str, Any]) -> bool:
    return command[0] == CALL_COMMAND and command[1][0] == WALK


@dataclass(frozen=True)
class WorkerFailure:
    """What a worker sends instead of a result when it fails; `trace` where it is a fault of the program."""

    line: str
    trace: str = ""


class WorkerLost(Exception):
    """A worker that ended or does not answer; the text says how."""


@dataclass
class _Worker:
    """What a worker was told, so that another can take its place."""

    arguments: tuple
    connection: Any  # the main process's end of the pipe
    process: Any
    fresh: bool = True  # nothing has been heard of it yet
    settings: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    sent: tuple[str, Any] = ("", None)  # the last command
    episode: Key | None = None  # the one under way; None between two
    place: Key | None = None  # the episode that was drawn last: where the new worker has to go on
    begun: bool = False  # whether the episode's reset is done
    gone: bool = False  # there is no episode left that does not end workers
    rollout: int | None = None
    actions: list[Any] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    deaths: Counter = field(default_factory=Counter)
    lost: dict[Key, str] = field(default_factory=dict)
    told: set[Key] = field(default_factory=set)


class VLNVectorEnv(VectorEnv):
    """Habitat's VectorEnv over `VLNR1GymEnv`s; see the module's text.

    Args:
        auto_reset_done: begin the next episode where one is done.
        answer_timeout: seconds without an answer after which a worker is taken for hung.
        **kwargs: those of VectorEnv.

    Raises:
        RuntimeError: a worker failed by an exception, naming environment and episode; or ended before any episode.
    """

    def __init__(
        self,
        make_env_fn: Callable[..., gym.Env],
        env_fn_args: Sequence[tuple],
        *,
        auto_reset_done: bool = True,
        answer_timeout: float = 600.0,
        **kwargs: Any,
    ):
        self._resets, self._timeout = auto_reset_done, answer_timeout
        self._states: list[_Worker] = []
        self._closing = False
        self._replacing = threading.Lock()
        # Resets are commands of their own, so that it is known which episode a worker ended at.
        super().__init__(make_env_fn, env_fn_args, auto_reset_done=False, **kwargs)

    _workers: list[Any]  # processes; the threads that Habitat's annotation allows are another class

    @staticmethod
    def _worker_env(
        connection_read_fn: Callable,
        connection_write_fn: Callable,
        env_fn: Callable,
        env_fn_args: tuple[Any],
        auto_reset_done: bool,
        mask_signals: bool = False,
        child_pipe: Any = None,
        parent_pipe: Any = None,
    ) -> None:
        end_with_main()
        try:
            # Without its own pipe Habitat's loop cannot close it, and the cause can still be sent.
            VectorEnv._worker_env(
                connection_read_fn, connection_write_fn, env_fn, env_fn_args, auto_reset_done, mask_signals,
                parent_pipe=parent_pipe,
            )  # fmt: skip
        except (EOFError, ConnectionError):
            pass  # the main process is gone
        except Exception as error:
            logger.debug(traceback.format_exc())
            ours = isinstance(error, VLNR1Error)
            failure = WorkerFailure(str(error)) if ours else WorkerFailure(repr(error), traceback.format_exc())
            connection_write_fn(failure)
        finally:
            child_pipe.close()

    def _spawn_workers(
        self, env_fn_args: Any, make_env_fn: Callable = make_env, workers_ignore_signals: bool = False
    ) -> tuple[list, list]:
        # The fork server imports once for all workers, which share that memory: some 5 s and 0.8 GB for each.
        set_forkserver_preload(["__main__", "habitat_baselines", __name__, *MODULES])
        self._make, self._mask = make_env_fn, workers_ignore_signals
        reads, writes = super()._spawn_workers(env_fn_args, make_env_fn, workers_ignore_signals)
        for arguments, read, write, process in zip(env_fn_args, reads, writes, self._workers, strict=True):
            receive: Any = read.read_fn  # a method of the pipe's end
            state = _Worker(arguments, receive.__self__, process)
            self._states.append(state)
            read.read_fn, write.write_fn = self._reader(state, read.rank), self._writer(state, read.rank)
        return reads, writes

    def _replace(self, state: _Worker) -> None:
        """A fresh worker in the place of one that is lost."""
        with self._replacing:
            workers, number = self._workers, self._num_envs
            self._num_envs = 1
            try:
                (read,), _ = super()._spawn_workers([state.arguments], self._make, self._mask)
                (process,) = self._workers
            finally:
                self._workers, self._num_envs = workers, number
            if state.process in workers:
                workers[workers.index(state.process)] = process
        state.connection.close()
        receive: Any = read.read_fn
        state.connection, state.process, state.fresh = receive.__self__, process, True

    # ------------------------------------------------------------------------------------- what goes through the pipe
    def _writer(self, state: _Worker, rank: int) -> Callable[[tuple[str, Any]], None]:
        """What VectorEnv sends commands with."""

        def write(command: tuple[str, Any]) -> None:
            state.sent = command
            if command[0] == CALL_COMMAND and command[1][0] in SETTINGS:
                name, arguments = command[1]
                state.settings[f"{name} {arguments.get('uuid', '')}"] = (name, arguments)
                state.place = state.place if name == "silence" else None
            if command[0] == RESET_COMMAND:
                self._draw(state, rank)
            acts = command[0] in (RESET_COMMAND, STEP_COMMAND) or _walks(command)
            if not acts or not (state.gone or state.episode in state.lost):
                self._send(state, command)

        return write

    def _reader(self, state: _Worker, rank: int) -> Callable[[], Any]:
        """What VectorEnv reads results with."""

        def read() -> Any:
            command, data = state.sent
            if command == RESET_COMMAND:
                return self._first_view(state, rank)
            if command == STEP_COMMAND:
                return self._outputs(state, rank, state.sent, [data])[0]
            if _walks(state.sent):
                return self._outputs(state, rank, state.sent, data[1]["actions"])
            return self._with_help(state, rank, state.sent)

        return read

    @staticmethod
    def _send(state: _Worker, command: tuple[str, Any]) -> None:
        with suppress(OSError):  # it has ended: reading says so
            state.connection.send(command)

    def _receive(self, state: _Worker, rank: int) -> Any:
        """The worker's answer. WorkerLost: there will be none."""
        try:
            timeout = max(self._timeout, START_TIMEOUT) if state.fresh else self._timeout
            if not state.connection.poll(timeout):
                state.process.kill()
                raise WorkerLost(f"no answer for {timeout:g} s")
            result = state.connection.recv()
            state.fresh = False
        except (EOFError, OSError):
            state.process.join(timeout=1)
            raise WorkerLost(
                f"its worker process ended (exit code {state.process.exitcode}; negative: killed by that signal, -9 "
                "is often lack of memory: lower habitat_baselines.num_environments)"
            ) from None
        if isinstance(result, WorkerFailure):
            where = f", episode {state.episode[1]} of {state.episode[0]}" if state.episode else ""
            line = f"environment {rank}{where}: {result.line}"
            raise RuntimeError(f"{line}\n{result.trace}") if result.trace else RunError(line)
        return result

    def _ask(self, state: _Worker, rank: int, command: str, data: Any = None) -> Any:
        self._send(state, (command, data))
        return self._receive(state, rank)

    def _with_help(self, state: _Worker, rank: int, command: tuple[str, Any]) -> Any:
        """The answer to a command that has been sent, from a new worker if need be."""
        while True:
            try:
                return self._receive(state, rank)
            except WorkerLost as lost:
                self._recover(state, rank, lost)
                self._send(state, command)

    # ----------------------------------------------------------------------------------------- episodes and their ends
    def _draw(self, state: _Worker, rank: int) -> None:
        """Let the worker go to its next episode that was not given up; `gone` when there is none."""
        state.episode, state.begun, state.gone = None, False, False
        seen: set[Key] = set()
        while True:
            draw = (CALL_COMMAND, ("draw_episode", None))
            self._send(state, draw)
            key = tuple(self._with_help(state, rank, draw))
            state.place = key
            if key not in state.lost:
                state.episode = key
                return
            if key in seen:
                state.gone = True
                return
            seen.add(key)

    def _first_view(self, state: _Worker, rank: int) -> dict[str, Any]:
        """What the drawn episode's reset shows; of the next one where it is given up; zeros where none is left."""
        while not state.gone:
            try:
                view = self._receive(state, rank)
            except WorkerLost as lost:
                self._recover(state, rank, lost)
                if state.episode in state.lost:
                    self._draw(state, rank)
                if not state.gone:
                    self._send(state, (RESET_COMMAND, None))
                continue
            state.begun, state.actions, state.deaths[None] = True, [], 0
            state.rollout = int(view[CLOCK][0]) if CLOCK in view else None
            return view
        spaces = self.observation_spaces[rank].spaces
        return {name: np.zeros(space.shape, space.dtype) for name, space in spaces.items()}

    def _next_view(self, state: _Worker, rank: int) -> dict[str, Any]:
        self._draw(state, rank)
        if not state.gone:
            self._send(state, (RESET_COMMAND, None))
        return self._first_view(state, rank)

    def _outputs(self, state: _Worker, rank: int, command: tuple[str, Any], actions: Sequence[Any]) -> list[Output]:
        """What the steps of a command return that takes these actions."""
        while not (state.gone or state.episode in state.lost):
            try:
                result = self._receive(state, rank)
            except WorkerLost as lost:
                self._recover(state, rank, lost)
                if state.episode not in state.lost:
                    self._send(state, command)
                continue
            outputs = list(result) if _walks(command) else [result]
            state.actions += actions[: len(outputs)]
            _, reward, done, state.info = outputs[-1]
            if done and self._resets:
                outputs[-1] = self._next_view(state, rank), reward, done, state.info
            return outputs
        why = state.lost[state.episode] if state.episode else "no episode is left"
        info = {**state.info, LOST: why}
        return [(self._next_view(state, rank), 0.0, True, info)]

    def walk_at(self, index: int, actions: Sequence[int], shown: Sequence[bool]) -> list[Output]:
        """See the function of this name."""
        return self.call_at(index, WALK, {"actions": list(actions), "shown": list(shown)})

    def take_lost(self, index: int) -> dict[Key, str]:
        """See `newly_lost`."""
        state = self._states[self._connection_read_fns[index].rank]
        new = {key: why for key, why in state.lost.items() if key not in state.told}
        state.told |= new.keys()
        return new

    # ------------------------------------------------------------------------------------------- the death of a worker
    def _recover(self, state: _Worker, rank: int, lost: WorkerLost) -> None:
        """A new worker where the old one was, unless the episode is given up: then before the next one."""
        while True:
            self._count(state, rank, lost)
            self._replace(state)
            try:
                for setting in state.settings.values():
                    self._ask(state, rank, CALL_COMMAND, setting)
                if state.place is not None:
                    self._ask(state, rank, CALL_COMMAND, ("skip_to", {"key": state.place}))
                if state.begun:
                    self._ask(state, rank, RESET_COMMAND)
                    if state.rollout is not None:
                        self._ask(state, rank, CALL_COMMAND, ("set_rollout", {"uid": state.rollout}))
                    for action in state.actions:
                        self._ask(state, rank, STEP_COMMAND, action)
                return
            except WorkerLost as again:
                lost = again

    def _count(self, state: _Worker, rank: int, lost: WorkerLost) -> None:
        if self._closing:
            raise RunError(f"environment {rank}: {lost}")
        key = None if state.episode in state.lost else state.episode
        state.deaths[key] += 1
        times = state.deaths[key]
        if times < MAX_DEATHS:
            what = f"episode {key[1]} of {key[0]}" if key else "no episode"
            logger.warning(f"environment {rank}, {what}: {lost}; a new worker takes over ({times} of {MAX_DEATHS})")
        elif key is None:
            raise RunError(f"environment {rank}: {lost}, {times} times")
        else:
            state.lost[key] = f"the simulator ended {times} times on it; the last time: {lost}"
            state.begun = False
            logger.warning(f"environment {rank}: episode {key[1]} of {key[0]} is given up: {state.lost[key]}")

    def replace_none(self) -> None:
        """From now on the death of a worker ends the run: it is being ended anyway."""
        self._closing = True

    def close(self) -> None:
        """Ends the workers, those that already failed included."""
        self._closing = True
        try:
            super().close()
        except (RuntimeError, OSError):
            for worker in self._workers:
                worker.kill()
                worker.join()
            self._is_closed = True
