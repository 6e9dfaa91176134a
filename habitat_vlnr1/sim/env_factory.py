"""The vector_env_factory: episodes, not only scenes, are divided among environments."""

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import hydra
from habitat import ThreadedVectorEnv, VectorEnv, logger, make_dataset
from habitat.config import read_write
from habitat.core.dataset import BaseEpisode
from habitat.tasks.vln.vln import VLNEpisode
from habitat_baselines.common.env_factory import VectorEnvFactory
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.config import import_modules
from habitat_vlnr1.errors import MissingFileError, VLNR1Error
from habitat_vlnr1.observations import INSTRUCTION
from habitat_vlnr1.results import left_out_text
from habitat_vlnr1.sim import register_sim
from habitat_vlnr1.sim.datasets import VLNCEDataset
from habitat_vlnr1.sim.episode_files import SAME, SAME_PLACE
from habitat_vlnr1.sim.vector_env import VLNVectorEnv, make_env

E = TypeVar("E", bound=BaseEpisode)


def make_scenes(config: DictConfig) -> None:
    """Make the task's scenes and episodes when the config names a maker (`vlnr1.task.scenes._target_`)."""
    make_parts(OmegaConf.select(config, "vlnr1.task.scenes"))


def make_parts(maker: DictConfig | None) -> None:
    """Call what makes a part of a task's data (`_target_` with its arguments); None: it is there."""
    if maker is not None:
        try:
            hydra.utils.call(maker)
        except InstantiationException as error:
            cause = error.__cause__ or error  # the maker's own line, not Hydra's around it
            raise (VLNR1Error(cause) if isinstance(cause, ValueError) else cause) from None


def split_episodes(episodes: Sequence[E], parts: int) -> list[list[E]]:
    """`parts` lists whose lengths differ by at most one, each with whole scenes as far as that allows.

    Scenes follow each other as in the file; at most parts - 1 of them are cut.
    """
    order: dict[str, list[E]] = {}
    for episode in episodes:
        order.setdefault(episode.scene_id, []).append(episode)
    flat = [episode for scene in order.values() for episode in scene]
    borders = [len(flat) * i // parts for i in range(parts + 1)]
    return [flat[a:b] for a, b in pairwise(borders)]


def open_dataset(config: DictConfig) -> VLNCEDataset:
    """The dataset of `habitat`'s config without the episodes that no environment could walk.

    Those are in `left_out`: the scene is missing, the ground truth lacks the episode, the instruction is too long, ….

    Raises:
        FileNotFoundError or ValueError: no episode can be walked, or the files cannot be read.
    """
    register_sim()
    dataset = make_dataset(config.dataset.type, config=config.dataset)
    scenes = dict.fromkeys(episode.scene_id for episode in dataset.episodes)
    missing = {scene for scene in scenes if not os.path.isfile(scene)}
    if len(missing) == len(scenes):
        raise MissingFileError(
            f"{min(missing)}: no such scene, nor any other of the {len(scenes)} needed; put the scenes below "
            f"habitat.dataset.scenes_dir={config.dataset.scenes_dir}"
        )
    if "distance_to_goal" in config.task.measurements and not any(episode.goals for episode in dataset.episodes):
        raise VLNR1Error(
            f"{len(dataset.episodes)} episodes of split {config.dataset.split} have no goal (first: "
            f"{dataset.episodes[0].episode_id}); a split without goals needs vlnr1/task=r2r_test or rxr_test"
        )
    reasons = {episode.episode_id: _why_unwalkable(episode, dataset, missing, config) for episode in dataset.episodes}
    dataset.leave_out({name: reason for name, reason in reasons.items() if reason}, config.dataset.scenes_dir)
    if not dataset.episodes:
        raise VLNR1Error(f"no episode can be walked; {left_out_text(dataset.left_out)[0]}")
    return dataset


def _why_unwalkable(episode: VLNEpisode, dataset: VLNCEDataset, missing: set[str], config: DictConfig) -> str | None:
    """What is wrong with an episode, as far as can be told without the simulator; None: nothing."""
    task = config.task
    if episode.scene_id in missing:
        return f"no such scene: {episode.scene_id}"
    if "distance_to_goal" in task.measurements and not episode.goals:
        return "no goal"
    if any(math.dist(episode.start_position, goal.position) < SAME for goal in episode.goals or []):
        return SAME_PLACE
    problem = dataset.ground_truth_problem(episode.episode_id)
    if problem:
        return f"ground truth: {problem}"
    if "ndtw" in task.measurements and not episode.reference_path and not dataset.ground_truth(episode.episode_id):
        return "no reference path"
    sensor = task.lab_sensors.get(INSTRUCTION)
    size = len(episode.instruction.instruction_text.encode())
    if sensor is not None and size > sensor.max_bytes:
        return f"instruction of {size} bytes: raise habitat.task.lab_sensors.vlnr1_instruction.max_bytes"
    return None


def _environment_config(config: DictConfig, index: int, is_first_rank: bool) -> DictConfig:
    """The config of one environment: its own seed, and the measures meant for it."""
    config = config.copy()
    with read_write(config):
        task = config.habitat.task
        config.habitat.seed += index
        dropped = [] if is_first_rank else list(task.rank0_measure_names)
        if index > 0 or not is_first_rank:
            dropped += task.rank0_env0_measure_names
        for name in dropped:
            task.measurements.pop(name, None)
    return config


class VLNVectorEnvFactory(VectorEnvFactory):
    """Builds the environments of `config`, one worker process each (threads when HABITAT_ENV_DEBUG is set).

    Args:
        share_episodes: every environment has all episodes, and begins none by itself, for a caller that deals them
            out; else they are divided, and the next one begins where one is done.
    """

    def __init__(self, share_episodes: bool = False):
        self.share_episodes = share_episodes

    def construct_envs(
        self,
        config: DictConfig,
        workers_ignore_signals: bool = False,
        enforce_scenes_greater_eq_environments: bool = False,
        is_first_rank: bool = True,
    ) -> VectorEnv:
        """The vectorised environment; never more environments than episodes.

        Its attribute `left_out` lists the episodes that are in no environment, and why; they are logged, too.
        The division depends on the episodes and `num_environments` alone. `enforce_scenes_greater_eq_environments`
        is of no use here: no episode is in two environments.
        """
        import_modules(config)  # our trainers have done both before; Habitat's own have not
        make_scenes(config)
        number = config.habitat_baselines.num_environments
        if number < 1:
            raise VLNR1Error(f"habitat_baselines.num_environments is {number}: at least 1 is needed")
        dataset = open_dataset(config.habitat)
        for line in left_out_text(dataset.left_out):
            logger.warning(f"split {config.habitat.dataset.split}: left out: {line}")
        if len(dataset.episodes) < number:
            logger.warning(f"{len(dataset.episodes)} episodes: using as many environments instead of {number}")
            number = len(dataset.episodes)
        parts = [dataset.episodes] * number if self.share_episodes else split_episodes(dataset.episodes, number)
        arguments = tuple(
            (_environment_config(config, index, is_first_rank), dataset.subset(part))
            for index, part in enumerate(parts)
        )
        envs: Any  # VectorEnv knows nothing of `left_out`
        options: Any = {"workers_ignore_signals": workers_ignore_signals, "auto_reset_done": not self.share_episodes}
        threads = int(os.environ.get("HABITAT_ENV_DEBUG", 0))
        if threads:
            envs = ThreadedVectorEnv(make_env, arguments, **options)
        else:
            timeout = OmegaConf.select(config, "vlnr1.answer_timeout", default=600)
            envs = VLNVectorEnv(make_env, arguments, answer_timeout=float(timeout), **options)
        envs.left_out = dataset.left_out
        return envs
