"""What stands in the files of R2R-CE and RxR-CE: episodes and ground truth, read and checked one by one."""

import gc
import gzip
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

import attr
import numpy as np
from habitat.tasks.nav.nav import NavigationGoal
from habitat.tasks.vln.vln import InstructionData, VLNEpisode

from habitat_vlnr1.errors import MissingFileError, VLNR1Error
from habitat_vlnr1.files import LONGEST_NAME, is_folder_name, is_text, printable

SCENES_PREFIX = "data/scene_datasets/"
SAME, SAME_PLACE = 0.01, "start and goal are the same place"
"""Nearer than so many metres there is no way to speak of, and no SPL."""
FOREIGN_START, FOREIGN_END = 1.0, 3.0
"""Metres that a ground truth may begin and end from where its episode does. VLN-CE's begin at the start itself: what
is left is rounding, and a start that is snapped to the navmesh. They end where its expert stopped near the goal."""
LOOKS = (4, 5)  # RxR-CE's LOOK_UP and LOOK_DOWN, which the four actions of this task lack
_OPTIONAL: dict[str, type] = {"goals": list, "reference_path": list, "info": dict}
_EPISODE_KEYS = {field.name for field in attr.fields(VLNEpisode) if field.init}


@attr.s(auto_attribs=True)
class RxRInstruction(InstructionData):
    """An instruction of RxR-CE.

    Attributes:
        instruction_id: what the leaderboard's submission file names.
        language: en-US, en-IN, hi-IN or te-IN.
        role: guide or follower: whose path the episode holds (not in the file, but in its name).
        timed_instruction: when each word was spoken, `[{"word", "start_time", "end_time"}]` in seconds; None unless
            the dataset was asked to keep it.
    """

    instruction_id: int | str | None = None
    language: str | None = None
    annotator_id: int | str | None = None
    edit_distance: float | None = None
    timed_instruction: list[dict[str, Any]] | None = None
    role: str | None = None


@dataclass(frozen=True)
class GroundTruth:
    """One entry of a ground-truth file."""

    locations: np.ndarray  # float64 [forwards + 1, 3], metres
    actions: tuple[int, ...]  # 0 stop, 1 forward, 2 left, 3 right; ends in the one 0
    looks: int = 0  # RxR's LOOK_UP and LOOK_DOWN that stood among the actions and are skipped

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "GroundTruth":
        """The entry {"actions": […], "locations": [[x, y, z], …]}; ValueError says what is wrong with it."""
        missing = [key for key in ("actions", "locations") if key not in entry]
        if missing:
            raise VLNR1Error(f"missing {', '.join(missing)}")
        try:
            recorded = [int(action) for action in entry["actions"]]
            if recorded != entry["actions"]:
                raise VLNR1Error
            locations = np.asarray(entry["locations"], dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise VLNR1Error("actions must be whole numbers, locations [n, 3] numbers") from None
        actions = tuple(action for action in recorded if action not in LOOKS)
        if not actions or actions[-1] != 0 or 0 in actions[:-1] or not set(actions) <= {0, 1, 2, 3}:
            raise VLNR1Error("actions must be 0 to 5 and end in the one 0")
        if locations.ndim != 2 or locations.shape[1] != 3 or not len(locations) or not np.isfinite(locations).all():
            raise VLNR1Error("locations must be [n, 3] finite numbers")
        return cls(locations, actions, len(recorded) - len(actions))


def foreign(truth: GroundTruth, episode: VLNEpisode) -> str | None:
    """Why a recorded path cannot be the episode's (another split's file has the same ids); None: it may be.

    An odd start or goal is no sign of it, if the path goes along the episode's reference path.
    """
    path = episode.reference_path or []
    starts = [episode.start_position, *path[:1]]
    ends = [*(goal.position for goal in episode.goals or []), *path[-1:]]
    for word, point, places, limit in (
        ("begins", truth.locations[0], starts, FOREIGN_START),
        ("ends", truth.locations[-1], ends, FOREIGN_END),
    ):
        off = min((math.dist(point, place) for place in places), default=0.0)
        if off > limit:
            return f"{word} {off:.1f} m from where the episode does, so it is another's"
    return None


def path_digest(episode: VLNEpisode, expert: str, truth: GroundTruth | None = None) -> str:
    """The same for two episodes if an expert is bound to see and do the same in them, whatever they are told.

    That is: scene and start to the last bit, the goals (which decide whether a walk counts), and what is followed.

    Args:
        expert: a mode of `vlnr1_expert`.
        truth: what is replayed, if it replays.
    """
    followed: Any = None if expert == "shortest_path" else episode.reference_path
    if truth is not None:
        followed = truth.actions, truth.looks, truth.locations.tolist()
    start = episode.scene_id, episode.start_position, episode.start_rotation
    goals = [goal.position for goal in episode.goals or []]
    return sha256(json.dumps([start, goals, followed]).encode()).hexdigest()


def ground_truth_or_reason(entry: dict[str, Any]) -> Any:
    """For `read_json_gz`: an entry as `GroundTruth`, or in words what is wrong with it; other objects as they are.

    While the file is read, because arrays take a tenth of the memory of its nested lists.
    """
    if not entry.keys() & {"actions", "locations"}:
        return entry
    try:
        return GroundTruth.from_json(entry)
    except ValueError as error:
        return str(error)


def without_times(value: dict[str, Any]) -> Any:
    """For `read_json_gz`: RxR's timed words as None, which are nine tenths of its episode files."""
    return None if "word" in value and "start_time" in value else value


def read_json_gz(path: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The parsed content of a gzipped JSON file; FileNotFoundError or ValueError say what to do.

    Args:
        hook: what stands in each object's place (`object_hook` of `json.loads`).
    """
    if not os.path.exists(path):
        raise MissingFileError(f"{path}: no such file; download or generate the data, or set habitat.dataset")
    try:
        with gzip.open(path, "rb") as file:
            return json.loads(file.read(), object_hook=hook)
    except gzip.BadGzipFile:
        raise VLNR1Error(f"{path}: not a gzip file (a Git LFS pointer or an error page?); fetch it again") from None
    except (EOFError, zlib.error):
        raise VLNR1Error(f"{path}: the gzip stream is cut or damaged; fetch it again") from None
    except OSError as error:
        raise VLNR1Error(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise VLNR1Error(f"{path}: not valid JSON ({error}); fetch it again") from None


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection meanwhile: reading makes millions of objects, none of them garbage, and looking through
    them again and again takes most of the time (RxR-CE: 3.8 instead of 1.1 s for 42,000 episodes)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _vector(value: Any, length: int, name: str) -> list[float]:
    """`value` as `length` finite floats, or ValueError."""
    try:
        vector = [float(x) for x in value] if not isinstance(value, str) else []
    except (TypeError, ValueError, OverflowError):
        raise VLNR1Error(f"{name} must be {length} numbers, got {printable(repr(value))}") from None
    if len(vector) != length or not all(map(math.isfinite, vector)):
        raise VLNR1Error(f"{name} must be {length} finite numbers, got {printable(repr(value))}")
    return vector


def _rotation(value: Any) -> list[float]:
    rotation = _vector(value, 4, "start_rotation")
    if abs(math.hypot(*rotation) - 1) > 0.01:
        raise VLNR1Error(f"start_rotation must be a unit quaternion [x, y, z, w], got {printable(repr(value))}")
    return rotation


@lru_cache(maxsize=1024)
def scene_path(scene_id: str, scenes_dir: str | None) -> str:
    """Where the scene is; ValueError when that is not below the scenes' folder."""
    scene = scene_id.removeprefix(SCENES_PREFIX)
    path = PurePosixPath(scene)
    parts = path.parts[:-1]
    leads_away = path.is_absolute() or ".." in parts or not is_folder_name(path.stem) or not path.suffix.isascii()
    if leads_away or not all(part.isprintable() and len(part.encode()) <= LONGEST_NAME for part in parts):
        raise VLNR1Error(f"scene_id {printable(repr(scene_id))} does not name a file below the scenes' folder")
    return os.path.join(scenes_dir, scene) if scenes_dir else scene


def _instruction(words: Any, kind: type[InstructionData]) -> InstructionData:
    if not isinstance(words, dict) or not isinstance(words.get("instruction_text"), str):
        raise VLNR1Error("instruction must be an object with the text instruction_text")
    needed = ("instruction_id", "language") if issubclass(kind, RxRInstruction) else ()
    missing = [key for key in needed if words.get(key) is None]
    if missing:
        raise VLNR1Error(f"instruction lacks {', '.join(missing)}")
    known = attr.fields_dict(kind)
    values = {key: value for key, value in words.items() if key in known}
    broken = [key for key, value in values.items() if isinstance(value, str) and not is_text(value)]
    if broken:
        raise VLNR1Error(f"{broken[0]} has half a surrogate pair in it (such as \\ud83d), which is no text")
    strange = [key for key in ("instruction_id", "language") if isinstance(values.get(key), list | dict)]
    if strange:
        raise VLNR1Error(f"instruction: {strange[0]} must be a text or a number")
    return kind(**values)


def parse_episode(
    raw: dict[str, Any], scenes_dir: str | None = None, instruction_type: type[InstructionData] = InstructionData
) -> VLNEpisode:
    """One episode of the R2R-CE or RxR-CE schema; metres, rotations [x, y, z, w].

    `goals`, `reference_path` and `info` may be absent (splits without goals), and `trajectory_id` (then it is the
    episode's id). Keys that are not known here are dropped. Raises ValueError naming the bad key.
    """
    required = ("episode_id", "scene_id", "start_position", "start_rotation", "instruction")
    missing = [key for key in required if raw.get(key) is None]
    if missing:
        raise VLNR1Error(f"missing {', '.join(missing)}")
    name = str(raw["episode_id"])
    if not is_folder_name(name):
        raise VLNR1Error(f"episode_id {printable(repr(name))} cannot be a folder name")
    goals, reference_path, info = (raw.get(key) or kind() for key, kind in _OPTIONAL.items())
    for key, value in zip(_OPTIONAL, (goals, reference_path, info), strict=True):
        if not isinstance(value, _OPTIONAL[key]):
            raise VLNR1Error(f"{key} must be {'an object' if _OPTIONAL[key] is dict else 'a list'}")
    if not all(isinstance(goal, dict) and "position" in goal for goal in goals):
        raise VLNR1Error("every entry of goals must be an object with a position")
    trajectory = name if raw.get("trajectory_id") is None else raw["trajectory_id"]
    if not (is_text(trajectory) or isinstance(trajectory, int | float)):
        raise VLNR1Error("trajectory_id must be a text that can be written, or a number")
    fields = {key: value for key, value in raw.items() if key in _EPISODE_KEYS}
    fields.update(
        episode_id=name,
        trajectory_id=trajectory,
        scene_id=scene_path(str(raw["scene_id"]), scenes_dir),
        start_position=_vector(raw["start_position"], 3, "start_position"),
        start_rotation=_rotation(raw["start_rotation"]),
        instruction=_instruction(raw["instruction"], instruction_type),
        goals=[
            NavigationGoal(position=_vector(goal["position"], 3, "goal position"), radius=goal.get("radius"))
            for goal in goals
        ],
        reference_path=[_vector(point, 3, "reference_path point") for point in reference_path],
        info=info,
    )
    return VLNEpisode(**fields)
