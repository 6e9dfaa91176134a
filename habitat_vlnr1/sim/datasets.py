"""The datasets `VLN-CE-v1` (R2R-CE) and `RxR-VLN-CE-v1` (RxR-CE), under the names that VLN-CE gave them.

R2R-CE v1-3 is read plain and preprocessed, with every split. Habitat's own `R2RVLN-v1` needs `instruction_vocab`,
`goals` and `reference_path`, which RxR-CE and the split `test` lack.

A file that cannot be read ends the run; a bad entry of a good file is left out, and `left_out` says which and why.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from habitat.config.default_structured_configs import DatasetConfig
from habitat.core.dataset import Dataset
from habitat.core.registry import registry
from habitat.datasets.utils import VocabDict
from habitat.tasks.vln.vln import InstructionData, VLNEpisode
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from habitat_vlnr1.errors import MissingFileError, VLNR1Error
from habitat_vlnr1.files import printable
from habitat_vlnr1.results import LeftOut
from habitat_vlnr1.sim.episode_files import (
    SCENES_PREFIX,
    GroundTruth,
    RxRInstruction,
    collector_paused,
    foreign,
    ground_truth_or_reason,
    parse_episode,
    read_json_gz,
    without_times,
)

ROLES = ("guide", "follower")
LANGUAGES = ("en-US", "en-IN", "hi-IN", "te-IN")


@dataclass
class VLNCEDatasetConfig(DatasetConfig):
    """Habitat's dataset config plus the ground-truth file and filters."""

    type: str = "VLN-CE-v1"
    data_path: str = "data/datasets/R2R_VLNCE_v1-3_preprocessed/{split}/{split}.json.gz"
    gt_path: str | None = None  # "{split}" template of the ground-truth file; None: there is none
    episode_ids: list[str] | None = None  # keep only these episodes; None: all
    max_episodes: int | None = None  # keep only the first N of those; None: all
    shard: int = 0  # keep only the scenes of this part …
    num_shards: int = 1  # … of so many


@dataclass
class RxRVLNCEDatasetConfig(VLNCEDatasetConfig):
    """RxR-CE: a file for each role, several languages in it."""

    type: str = "RxR-VLN-CE-v1"
    data_path: str = "data/datasets/RxR_VLNCE_v0/{split}/{split}_{role}.json.gz"
    roles: list[str] = field(default_factory=lambda: ["guide"])  # guide, follower; "*": both
    languages: list[str] = field(default_factory=lambda: ["en-*"])  # en-US, en-IN, hi-IN, te-IN; * stands for any text
    timed_instructions: bool = False  # keep when each word was spoken (nine tenths of the file)


for _name, _node in (("vlnce", VLNCEDatasetConfig), ("rxr_vlnce", RxRVLNCEDatasetConfig)):
    ConfigStore.instance().store(package="habitat.dataset", group="habitat/dataset", name=_name, node=_node)


class EmptyShard(VLNR1Error):
    """There are fewer scenes than shards, and this shard has none."""


@registry.register_dataset(name="VLN-CE-v1")
class VLNCEDataset(Dataset):
    """Episodes of one split, filtered by scene, episode id and number, with their ground truth when there is one.

    `left_out` holds the entries that are not among `episodes` because something is wrong with them.

    Raises FileNotFoundError or ValueError in one line that names file and remedy.
    """

    episodes: list[VLNEpisode]
    instruction_vocab: VocabDict | None
    left_out: list[LeftOut]

    def __init__(self, config: DictConfig | None = None) -> None:
        self.episodes = []
        self.left_out = []
        self.instruction_vocab = None
        self._gt_paths: dict[str, str] = {}  # role → file
        self._gt: dict[str, GroundTruth | str] | None = None
        if config is None:
            return
        for role in self.roles(config):
            if config.get("gt_path"):
                self._gt_paths[role] = _existing_ground_truth(config.gt_path.format(split=config.split, role=role))
        for role in self.roles(config):
            self._path = config.data_path.format(split=config.split, role=role)
            with collector_paused():
                self._read(read_json_gz(self._path, self._hook(config)), config.scenes_dir, config, role)
        self._filter(config)
        self._keep_shard(config.get("shard", 0), config.get("num_shards", 1))

    @classmethod
    def roles(cls, config: DictConfig) -> list[str]:
        """The roles that a file is read for; R2R-CE has none."""
        return [""]

    @classmethod
    def check_config_paths_exist(cls, config: DictConfig) -> bool:
        """Habitat's question before it lists scenes."""
        paths = [config.data_path.format(split=config.split, role=role) for role in cls.roles(config)]
        return all(map(os.path.exists, [*paths, config.scenes_dir]))

    def from_json(self, json_str: str, scenes_dir: str | None = None) -> None:
        """Adds the episodes of a JSON string (Habitat's interface)."""
        self._path = "<json>"
        self._read(json.loads(json_str), scenes_dir)

    def _hook(self, config: DictConfig) -> Any:
        return None

    def _parse(self, raw: dict[str, Any], scenes_dir: str | None, config: Any, role: str) -> VLNEpisode | None:
        """The episode, or None when the config does not ask for it; ValueError when it is bad."""
        return parse_episode(raw, scenes_dir, InstructionData)

    def _read(self, content: Any, scenes_dir: str | None, config: DictConfig | None = None, role: str = "") -> None:
        if not isinstance(content, dict) or not isinstance(content.get("episodes"), list):
            raise VLNR1Error(f"{self._path}: no list 'episodes' at the top; is this an episode file?")
        seen = {episode.episode_id for episode in self.episodes}
        bad: list[LeftOut] = []
        for index, raw in enumerate(content["episodes"]):
            entry = raw if isinstance(raw, dict) else {}
            try:
                if not entry:
                    raise VLNR1Error("not an object")
                episode = self._parse(raw, scenes_dir, config, role)
                if episode is None:
                    continue
                if episode.episode_id in seen:
                    raise VLNR1Error("this episode_id occurs twice")
            except ValueError as error:
                scene = printable(entry.get("scene_id", "?")).removeprefix(SCENES_PREFIX)
                reason = f"entry {index} of {os.path.basename(self._path)}: {error}"
                bad.append(LeftOut(printable(entry.get("episode_id", "?")), scene, reason))
                continue
            seen.add(episode.episode_id)
            self.episodes.append(episode)
        if bad and len(bad) == len(content["episodes"]):
            raise VLNR1Error(f"{self._path}: no usable episode ({bad[0].reason}); is this the right file?")
        self.left_out += bad
        vocabulary = content.get("instruction_vocab") or {}
        words = vocabulary.get("word_list") if isinstance(vocabulary, dict) else vocabulary
        if words and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise VLNR1Error(f"{self._path}: instruction_vocab.word_list must be a list of words; fetch it again")
        self.instruction_vocab = VocabDict(word_list=words) if words else None

    def _filter(self, config: DictConfig) -> None:
        in_scenes = self.build_content_scenes_filter(config)
        self.episodes = list(filter(in_scenes, self.episodes))
        self.left_out = list(filter(in_scenes, self.left_out))
        if config.get("episode_ids") is not None:
            wanted = {str(name) for name in config.episode_ids}
            known = {episode.episode_id for episode in self.episodes} | {left.episode_id for left in self.left_out}
            unknown = sorted(wanted - known)
            if unknown:
                raise VLNR1Error(
                    f"{self._path}: no episode {', '.join(unknown[:5])} in split {config.split}; "
                    "correct habitat.dataset.episode_ids"
                )
            self.episodes = [episode for episode in self.episodes if episode.episode_id in wanted]
            self.left_out = [entry for entry in self.left_out if entry.episode_id in wanted]
        if config.get("max_episodes") is not None:
            self.episodes = self.episodes[: config.max_episodes]
        if not self.episodes:
            raise VLNR1Error(f"{self._path}: no episode is left; check the filters of habitat.dataset")

    def _keep_shard(self, shard: int, num_shards: int) -> None:
        """Keep one part of the scenes. The parts depend on the file and the filters alone, and hold about as many
        episodes each: the largest scene first, each goes to the part that has fewest episodes."""
        if not 0 <= shard < num_shards:
            raise VLNR1Error(f"shard {shard} of {num_shards}: shards count from 0 to num_shards - 1")
        if num_shards == 1:
            return
        sizes: dict[str, int] = {}
        for episode in self.episodes:
            sizes[episode.scene_id] = sizes.get(episode.scene_id, 0) + 1
        loads, mine = [0] * num_shards, set()
        for scene in sorted(sizes, key=lambda scene: (-sizes[scene], scene)):
            part = loads.index(min(loads))
            loads[part] += sizes[scene]
            if part == shard:
                mine.add(scene)
        self.episodes = [episode for episode in self.episodes if episode.scene_id in mine]
        if not self.episodes:
            raise EmptyShard(f"{self._path}: {len(sizes)} scenes for {num_shards} shards: none for shard {shard}")

    def leave_out(self, reasons: dict[str, str], scenes_dir: str) -> None:
        """Move episodes to `left_out`. reasons: episode id → why."""
        prefix = os.path.join(scenes_dir, "")  # a path with "/" at its end
        for episode in self.episodes:
            if episode.episode_id in reasons:
                scene = episode.scene_id.removeprefix(prefix)
                self.left_out.append(LeftOut(episode.episode_id, scene, reasons[episode.episode_id]))
        self.episodes = [episode for episode in self.episodes if episode.episode_id not in reasons]

    def ground_truth(self, episode_id: str) -> GroundTruth | None:
        """The recorded path of one episode; None when the dataset has no ground-truth file.

        The file is read at the first call. Raises ValueError when it is damaged or lacks the episode.
        """
        problem = self.ground_truth_problem(episode_id)
        if problem:
            raise VLNR1Error(
                f"{', '.join(self._gt_paths.values())}: episode {episode_id}: {problem}; take the file that belongs "
                "to the episodes, or set habitat.dataset.gt_path=null"
            )
        truth = None if self._gt is None else self._gt[episode_id]
        assert not isinstance(truth, str), "a problem, which is raised above"
        return truth

    def ground_truth_problem(self, episode_id: str) -> str | None:
        """What is wrong with an episode's ground truth; None when it is good, or when there is no file.

        Raises ValueError when the file cannot be read.
        """
        if not self._gt_paths:
            return None
        if self._gt is None:
            self._gt = self._read_ground_truth()
        found = self._gt.get(episode_id, "not in the file")
        return None if isinstance(found, GroundTruth) else found

    def _read_ground_truth(self) -> dict[str, GroundTruth | str]:
        truths: dict[str, GroundTruth | str] = {}
        for role, path in self._gt_paths.items():
            with collector_paused():
                content = read_json_gz(path, ground_truth_or_reason)
            if not isinstance(content, dict):
                raise VLNR1Error(f"{path}: not an object {{episode_id: …}}; is this a ground-truth file?")
            for episode in self.episodes:
                entry = content.get(episode.episode_id)
                if entry is not None and (getattr(episode.instruction, "role", None) or "") == role:
                    good = isinstance(entry, GroundTruth | str)
                    truths[episode.episode_id] = entry if good else "missing actions, locations"
            self._refuse_foreign(path, truths)
        return truths

    def _refuse_foreign(self, path: str, truths: dict[str, GroundTruth | str]) -> None:
        """Put the reason in place of each path that is not its episode's; ValueError where most are not."""
        paths = [
            (episode, truth)
            for episode in self.episodes
            if isinstance(truth := truths.get(episode.episode_id), GroundTruth)
        ]
        others = {episode.episode_id: why for episode, truth in paths if (why := foreign(truth, episode))}
        if len(others) > len(paths) / 2:
            name, why = next(iter(others.items()))
            raise VLNR1Error(
                f"{path}: {len(others)} of {len(paths)} paths are not those of {self._path} (episode {name}: {why}); "
                "take the file that belongs to the episodes, or set habitat.dataset.gt_path=null"
            )
        truths.update(others)

    def subset(self, episodes: Sequence[VLNEpisode]) -> "VLNCEDataset":
        """The same dataset with these episodes, and their ground truth, only (for one environment)."""
        names = {episode.episode_id for episode in episodes}
        part: Any = self.filter_episodes(lambda episode: episode.episode_id in names)
        if self._gt is not None:
            part._gt = {name: truth for name, truth in self._gt.items() if name in names}
        return part


def _existing_ground_truth(path: str) -> str:
    if not os.path.exists(path):
        raise MissingFileError(
            f"{path}: no such file; fetch it, or measure nDTW against reference_path with habitat.dataset.gt_path=null"
        )
    return path


@registry.register_dataset(name="RxR-VLN-CE-v1")
class RxRVLNCEDataset(VLNCEDataset):
    """RxR-CE: the episodes of `roles` whose instruction (`RxRInstruction`) is in one of `languages`."""

    @classmethod
    def roles(cls, config: DictConfig) -> list[str]:
        known = ROLES[:1] if config.split == "test_challenge" else ROLES
        return _matching(config.roles, known, f"habitat.dataset.roles (split {config.split})")

    def _hook(self, config: DictConfig) -> Any:
        self._languages = set(_matching(config.languages, LANGUAGES, "habitat.dataset.languages"))
        return None if config.timed_instructions else without_times

    def _parse(self, raw: dict[str, Any], scenes_dir: str | None, config: Any, role: str) -> VLNEpisode | None:
        words = raw.get("instruction")
        if isinstance(words, dict):
            if config is not None and words.get("language") in sorted(set(LANGUAGES) - self._languages):
                return None
            times = words.get("timed_instruction") if config is None or config.timed_instructions else None
            raw = {**raw, "instruction": {**words, "role": role or None, "timed_instruction": times}}
        return parse_episode(raw, scenes_dir, RxRInstruction)


def _matching(patterns: Sequence[str], known: Sequence[str], key: str) -> list[str]:
    """The known names that some pattern matches, in their own order."""
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in known):
            raise VLNR1Error(f"{key}: {pattern!r} matches none of {', '.join(known)}")
    found = [name for name in known if any(fnmatch(name, pattern) for pattern in patterns)]
    if not found:
        raise VLNR1Error(f"{key} is empty: name at least one of {', '.join(known)}")
    return found
