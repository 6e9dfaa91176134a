"""The dataset `VLN-CE-v1`: episodes in the R2R-CE schema (VLN-CE's `{split}.json.gz`, plain or preprocessed).

Habitat's own `R2RVLN-v1` needs `instruction_vocab`, `goals` and `reference_path`, which the split `test` lacks.
"""

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import attr
import numpy as np
from habitat.config.default_structured_configs import DatasetConfig
from habitat.core.dataset import Dataset
from habitat.core.registry import registry
from habitat.datasets.utils import VocabDict
from habitat.tasks.nav.nav import NavigationGoal
from habitat.tasks.vln.vln import InstructionData, VLNEpisode
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

SCENES_PREFIX = "data/scene_datasets/"
_EPISODE_KEYS = {field.name for field in attr.fields(VLNEpisode) if field.init}
_INSTRUCTION_KEYS = {field.name for field in attr.fields(InstructionData)}


@dataclass
class VLNCEDatasetConfig(DatasetConfig):
    """Habitat's dataset config plus the ground-truth file and two filters."""

    type: str = "VLN-CE-v1"
    data_path: str = "data/datasets/R2R_VLNCE_v1-3_preprocessed/{split}/{split}.json.gz"
    gt_path: str | None = None  # "{split}" template of the ground-truth file; None: there is none
    episode_ids: list[str] | None = None  # keep only these episodes; None: all
    max_episodes: int | None = None  # keep only the first N of those; None: all


ConfigStore.instance().store(package="habitat.dataset", group="habitat/dataset", name="vlnce", node=VLNCEDatasetConfig)


@dataclass(frozen=True)
class GroundTruth:
    """One entry of `{split}_gt.json.gz`."""

    locations: np.ndarray  # float64 [forwards + 1, 3], metres
    actions: tuple[int, ...]  # 0 stop, 1 forward, 2 left, 3 right; ends in 0


def read_json_gz(path: str) -> Any:
    """The parsed content of a gzipped JSON file; FileNotFoundError or ValueError say what to do."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file; download or generate the data, or set habitat.dataset")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return json.load(file)
    except gzip.BadGzipFile:
        raise ValueError(f"{path}: not a gzip file (a Git LFS pointer or an error page?); fetch it again") from None
    except (EOFError, zlib.error):
        raise ValueError(f"{path}: the gzip stream is cut or damaged; fetch it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); fetch it again") from None


def _vector(value: Any, length: int, name: str) -> list[float]:
    """`value` as `length` finite floats, or ValueError."""
    try:
        vector = [float(x) for x in value]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {length} numbers, got {value!r}") from None
    if len(vector) != length or not np.isfinite(vector).all():
        raise ValueError(f"{name} must be {length} finite numbers, got {value!r}")
    return vector


def parse_episode(raw: dict[str, Any], scenes_dir: str | None = None) -> VLNEpisode:
    """One episode of the R2R-CE schema; `goals`, `reference_path` and `info` may be absent (split `test`).

    Raises ValueError naming the bad key; positions in metres, rotations [x, y, z, w].
    """
    required = ("episode_id", "trajectory_id", "scene_id", "start_position", "start_rotation", "instruction")
    missing = [key for key in required if raw.get(key) is None]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    words = raw["instruction"]
    if not isinstance(words, dict) or not isinstance(words.get("instruction_text"), str):
        raise ValueError("instruction must be an object with the text instruction_text")
    fields = {key: value for key, value in raw.items() if key in _EPISODE_KEYS}
    scene = str(raw["scene_id"]).removeprefix(SCENES_PREFIX)
    goals = raw.get("goals") or []
    if not all(isinstance(goal, dict) and "position" in goal for goal in goals):
        raise ValueError("every entry of goals must be an object with a position")
    fields.update(
        episode_id=str(raw["episode_id"]),
        scene_id=os.path.join(scenes_dir, scene) if scenes_dir else scene,
        start_position=_vector(raw["start_position"], 3, "start_position"),
        start_rotation=_vector(raw["start_rotation"], 4, "start_rotation"),
        instruction=InstructionData(**{k: v for k, v in words.items() if k in _INSTRUCTION_KEYS}),
        goals=[
            NavigationGoal(position=_vector(goal["position"], 3, "goal position"), radius=goal.get("radius"))
            for goal in goals
        ],
        reference_path=[_vector(p, 3, "reference_path point") for p in raw.get("reference_path") or []],
    )
    return VLNEpisode(**fields)


@registry.register_dataset(name="VLN-CE-v1")
class VLNCEDataset(Dataset):
    """Episodes of one split, filtered by scene, episode id and number, with their ground truth when there is one.

    Raises FileNotFoundError or ValueError in one line that names file, episode and remedy.
    """

    episodes: list[VLNEpisode]
    instruction_vocab: VocabDict | None

    def __init__(self, config: DictConfig | None = None) -> None:
        self.episodes = []
        self.instruction_vocab = None
        self._gt_path: str | None = None
        self._gt: dict[str, Any] | None = None
        if config is None:
            return
        self._path = config.data_path.format(split=config.split)
        if config.get("gt_path"):
            self._gt_path = config.gt_path.format(split=config.split)
        self._read(read_json_gz(self._path), config.scenes_dir)
        self._filter(config)

    @staticmethod
    def check_config_paths_exist(config: DictConfig) -> bool:
        """Habitat's question before it lists scenes."""
        return os.path.exists(config.data_path.format(split=config.split)) and os.path.exists(config.scenes_dir)

    def from_json(self, json_str: str, scenes_dir: str | None = None) -> None:
        """Adds the episodes of a JSON string (Habitat's interface)."""
        self._path = "<json>"
        self._read(json.loads(json_str), scenes_dir)

    def _read(self, content: Any, scenes_dir: str | None) -> None:
        if not isinstance(content, dict) or not isinstance(content.get("episodes"), list):
            raise ValueError(f"{self._path}: no list 'episodes' at the top; is this an R2R-CE episode file?")
        seen = {episode.episode_id for episode in self.episodes}
        for index, raw in enumerate(content["episodes"]):
            try:
                if not isinstance(raw, dict):
                    raise ValueError("not an object")
                episode = parse_episode(raw, scenes_dir)
                if episode.episode_id in seen:
                    raise ValueError("this episode_id occurs twice")
            except ValueError as error:
                name = raw.get("episode_id", "?") if isinstance(raw, dict) else "?"
                raise ValueError(
                    f"{self._path}: episode {name} (entry {index}): {error}; correct or remove it"
                ) from None
            seen.add(episode.episode_id)
            self.episodes.append(episode)
        words = (content.get("instruction_vocab") or {}).get("word_list")
        self.instruction_vocab = VocabDict(word_list=words) if words else None

    def _filter(self, config: DictConfig) -> None:
        episodes = list(filter(self.build_content_scenes_filter(config), self.episodes))
        wanted = config.get("episode_ids")
        if wanted is not None:
            wanted = {str(name) for name in wanted}
            unknown = sorted(wanted - {episode.episode_id for episode in episodes})
            if unknown:
                raise ValueError(
                    f"{self._path}: no episode {', '.join(unknown[:5])} in split {config.split}; "
                    "correct habitat.dataset.episode_ids"
                )
            episodes = [episode for episode in episodes if episode.episode_id in wanted]
        if config.get("max_episodes") is not None:
            episodes = episodes[: config.max_episodes]
        if not episodes:
            raise ValueError(
                f"{self._path}: no episode is left; check content_scenes, episode_ids, max_episodes of habitat.dataset"
            )
        self.episodes = episodes

    def ground_truth(self, episode_id: str) -> GroundTruth | None:
        """The recorded path of one episode; None when the dataset has no ground-truth file.

        The file is read at the first call. Raises ValueError when it is damaged or lacks the episode.
        """
        if self._gt_path is None or not os.path.exists(self._gt_path):
            return None
        if self._gt is None:
            content = read_json_gz(self._gt_path)
            if not isinstance(content, dict):
                raise ValueError(f"{self._gt_path}: not an object {{episode_id: …}}; is this a ground-truth file?")
            # A worker holds a part of the episodes only; so should its ground truth.
            self._gt = {e.episode_id: content[e.episode_id] for e in self.episodes if e.episode_id in content}
        try:
            entry = self._gt[episode_id]
            actions = tuple(int(action) for action in entry["actions"])
            locations = np.asarray(entry["locations"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._gt_path}: episode {episode_id}: no usable actions and locations ({error!r}); "
                "take the file that belongs to the episodes, or set habitat.dataset.gt_path=null"
            ) from None
        if not actions or actions[-1] != 0 or locations.ndim != 2 or locations.shape[1] != 3:
            raise ValueError(f"{self._gt_path}: episode {episode_id}: actions must end in 0, locations be [n, 3]")
        return GroundTruth(locations, actions)

    def subset(self, episodes: Sequence[VLNEpisode]) -> "VLNCEDataset":
        """The same dataset with these episodes only (for one environment)."""
        names = {episode.episode_id for episode in episodes}
        return self.filter_episodes(lambda episode: episode.episode_id in names)
