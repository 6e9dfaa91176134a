"""The vector_env_factory: episodes, not only scenes, are divided among environments."""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import hydra
from habitat import ThreadedVectorEnv, VectorEnv, logger, make_dataset
from habitat.config import read_write
from habitat.core.dataset import BaseEpisode
from habitat_baselines.common.env_factory import VectorEnvFactory
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from habitat_vlnr1.register import register_sim
from habitat_vlnr1.sim.vector_env import VLNVectorEnv, make_env

E = TypeVar("E", bound=BaseEpisode)


def make_scenes(config: DictConfig) -> None:
    """Make the task's scenes and episodes when the config names a maker (`vlnr1.task.scenes._target_`)."""
    scenes = OmegaConf.select(config, "vlnr1.task.scenes")
    if scenes is not None:
        try:
            hydra.utils.call(scenes)
        except InstantiationException as error:
            raise (error.__cause__ or error) from None  # the maker's own line, not Hydra's around it


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


def _check(episodes: Sequence[BaseEpisode], config: DictConfig) -> None:
    """FileNotFoundError or ValueError for what a worker could only say in Habitat's words."""
    for scene in dict.fromkeys(episode.scene_id for episode in episodes):
        if not os.path.exists(scene):
            raise FileNotFoundError(
                f"{scene}: no such scene; put the scenes below habitat.dataset.scenes_dir={config.dataset.scenes_dir}"
            )
    if "distance_to_goal" in config.task.measurements:
        without = [episode.episode_id for episode in episodes if not episode.goals]
        if without:
            raise ValueError(
                f"{len(without)} episodes of split {config.dataset.split} have no goal (first: {without[0]}); "
                "a split without goals needs vlnr1/task=r2r_test"
            )


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
    """Builds the environments of `config`, one worker process each (threads when HABITAT_ENV_DEBUG is set)."""

    def construct_envs(
        self,
        config: DictConfig,
        workers_ignore_signals: bool = False,
        enforce_scenes_greater_eq_environments: bool = False,
        is_first_rank: bool = True,
    ) -> VectorEnv:
        """The vectorised environment; never more environments than episodes.

        The division depends on the episodes and `num_environments` alone. `enforce_scenes_greater_eq_environments`
        is of no use here: no episode is in two environments.
        """
        make_scenes(config)  # our trainers have done so before; Habitat's own have not
        number = config.habitat_baselines.num_environments
        if number < 1:
            raise ValueError(f"habitat_baselines.num_environments is {number}: at least 1 is needed")
        register_sim()
        dataset = make_dataset(config.habitat.dataset.type, config=config.habitat.dataset)
        _check(dataset.episodes, config.habitat)
        if len(dataset.episodes) < number:
            logger.warning(f"{len(dataset.episodes)} episodes: using as many environments instead of {number}")
            number = len(dataset.episodes)
        arguments = tuple(
            (_environment_config(config, index, is_first_rank), dataset.subset(part))
            for index, part in enumerate(split_episodes(dataset.episodes, number))
        )
        threads = int(os.environ.get("HABITAT_ENV_DEBUG", 0))
        vector_env = ThreadedVectorEnv if threads else VLNVectorEnv
        return vector_env(make_env, arguments, workers_ignore_signals=workers_ignore_signals)
