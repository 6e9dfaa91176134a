"""The environment that runs in a worker, and a VectorEnv that says in one line why a worker failed."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.forkserver import set_forkserver_preload
from typing import Any

import gym
from habitat import Dataset, VectorEnv, logger
from habitat.config import read_write
from habitat.config.default import get_agent_config
from habitat.config.default_structured_configs import HabitatSimDepthSensorConfig, HabitatSimSemanticSensorConfig
from habitat.gym import make_gym_from_config
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.observations import DESCRIPTION
from habitat_vlnr1.sim import MODULES, register_sim


def make_env(config: DictConfig, dataset: Dataset | None = None) -> gym.Env:
    """The gym environment of `config`, with everything of ours registered (a worker starts with nothing).

    Interpolations are resolved first: Habitat copies sensor and measure configs out of the tree that they refer to.
    A description needs depth and semantic ids: they are rendered with the RGB camera's geometry, unless the config
    has such sensors itself.
    """
    register_sim()
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


@dataclass(frozen=True)
class WorkerFailure:
    """What a worker sends instead of a result when it fails."""

    line: str


class VLNVectorEnv(VectorEnv):
    """Habitat's VectorEnv; a failed or dead worker raises RuntimeError naming the environment and the cause."""

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
            connection_write_fn(WorkerFailure(f"{type(error).__name__}: {error}"))
        finally:
            child_pipe.close()

    def _spawn_workers(self, *args: Any, **kwargs: Any) -> tuple[list, list]:
        # The fork server imports once for all workers, which share that memory: some 5 s and 0.8 GB for each.
        set_forkserver_preload(["__main__", "habitat_baselines", __name__, *MODULES])
        reads, writes = super()._spawn_workers(*args, **kwargs)
        for read in reads:
            read.read_fn = self._guarded(read.read_fn, read.rank)
        return reads, writes

    def _guarded(self, receive: Callable[[], Any], rank: int) -> Callable[[], Any]:
        worker = self._workers[rank]

        def read() -> Any:
            try:
                result = receive()
            except (EOFError, OSError):
                worker.join(timeout=1)
                raise RuntimeError(
                    f"environment {rank}: its worker process ended (exit code {worker.exitcode}; negative: killed by "
                    "that signal, -9 is often lack of memory); lower habitat_baselines.num_environments"
                ) from None
            if isinstance(result, WorkerFailure):
                raise RuntimeError(f"environment {rank}: {result.line}")
            return result

        return read

    def close(self) -> None:
        """Ends the workers, those that already failed included."""
        try:
            super().close()
        except (RuntimeError, OSError):
            for worker in self._workers:
                worker.terminate()
                worker.join()
            self._is_closed = True
