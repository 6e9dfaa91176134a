"""Making houses and episodes on disk, once: `ensure`."""

import functools
import gzip
import json
import math
import multiprocessing
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from habitat_embedded_sim.houses import directions
from habitat_embedded_sim.houses.corridor import LENGTH
from habitat_embedded_sim.houses.expert import FORWARD, Walk
from habitat_embedded_sim.houses.instructions import vocabulary, words_of, write_instruction
from habitat_embedded_sim.houses.route import DOOR_SHARES, Route, draw_goal, draw_route
from habitat_embedded_sim.houses.style import get_style
from habitat_embedded_sim.houses.told import MOST_CLAUSES, draw_told_way
from habitat_embedded_sim.houses.world import World, make_world

VERSION = 4  # of the generator: raise it when the same arguments give other files
_MANIFEST = "manifest.json"
_GOAL_TRIES, _START_TRIES = 20, 6  # goals per wanted episode and starts per goal before a house is drawn anew
_LONG_TRIES = 150  # ways drawn for a wanted episode before a house is drawn anew
_SHARED = 2  # episodes that may end at the same goal
_OLD = {"clauses": [], "corridor": [*LENGTH], "must_count": False}  # what manifests of older sets do not say
_SPECIAL_WORDS = ["<pad>", "<unk>"]


@dataclass(frozen=True)
class Settings:
    """What a data set is made of; equal settings give equal files."""

    name: str
    seed: int
    style: str
    train_scenes: int
    train_episodes_per_scene: int
    val_seen_episodes: int
    val_unseen_scenes: int
    val_unseen_episodes_per_scene: int
    turn_angle: float
    forward_step: float
    goal_radius: float
    door_shares: tuple[float, ...]
    start_turn: float
    clauses: tuple[int, ...]
    corridor: tuple[float, ...]
    must_count: bool
    version: int = VERSION


@dataclass(frozen=True)
class _Job:
    """One house to make: how many episodes for which split."""

    settings: Settings
    scenes: Path
    index: int
    unseen: bool
    wanted: dict[str, int]

    @property
    def house(self) -> str:
        return f"{'unseen' if self.unseen else 'house'}_{self.index:04d}"


def ensure(
    data_dir: str | Path = "data",
    name: str = "embedded",
    seed: int = 0,
    style: str = "modern",
    train_scenes: int = 240,
    train_episodes_per_scene: int = 8,
    val_seen_episodes: int = 100,
    val_unseen_scenes: int = 40,
    val_unseen_episodes_per_scene: int = 5,
    turn_angle: float = 30.0,
    forward_step: float = 0.25,
    goal_radius: float = 3.0,
    door_shares: Sequence[float] = DOOR_SHARES,
    start_turn: float = 180.0,
    clauses: Sequence[int] = (),
    corridor: Sequence[float] = LENGTH,
    must_count: bool = False,
    num_workers: int = 2,
) -> None:
    """Make the houses and episodes unless they are there.

    Scenes go to `<data_dir>/scene_datasets/<name>`, episodes to `<data_dir>/datasets/vln/<name>`, in the schema of
    R2R-CE with splits train, val_seen and val_unseen. Lengths in metres, `turn_angle` in degrees (those of the expert
    that made the ground truth); `door_shares` are the relative frequencies of draws that cross 0, 1, 2, … doors;
    a walker starts at most `start_turn` degrees off its way. `clauses` (each 1 … 5, in turn) makes long ways instead,
    told in so many clauses, in houses with a `corridor` (metres, shortest and longest); in the val splits `must_count`
    leaves out ways that are right for who takes the first, or the last, whatever the words ask for. `door_shares` and
    `start_turn` then count for nothing. The same arguments give the same files, whatever `num_workers` is. Of several
    processes at the same time one makes them, and the others wait for it. ValueError if the folder holds another set.
    """
    settings = Settings(
        name,
        seed,
        style,
        train_scenes,
        train_episodes_per_scene,
        val_seen_episodes,
        val_unseen_scenes,
        val_unseen_episodes_per_scene,
        float(turn_angle),
        float(forward_step),
        float(goal_radius),
        tuple(float(share) for share in door_shares),
        float(start_turn),
        tuple(int(count) for count in clauses),
        tuple(float(metres) for metres in corridor),
        bool(must_count),
    )
    _check(settings)
    root = Path(data_dir)
    scenes, episodes = root / "scene_datasets" / name, root / "datasets" / "vln" / name
    if _is_made(scenes, settings) and _is_made(episodes, settings):
        return
    root.mkdir(parents=True, exist_ok=True)
    with _only_maker(root, name) as scratch:
        missing = [place for place in (scenes, episodes) if not _is_made(place, settings)]
        if missing:  # else another process has made them meanwhile
            _make(settings, scratch, num_workers)
        for place in missing:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(scratch / ("scenes" if place == scenes else "episodes"), place)


@contextmanager
def _only_maker(root: Path, name: str) -> Iterator[Path]:
    """A folder to make the set `name` in, while no other process makes it; waits for one that does, and says so.

    The lock is the kernel's and goes with its process. What a killed one has left is deleted.
    """
    lock = FileLock(root / f".{name}.lock", poll_interval=0.5)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process is making houses '{name}' in {root}: waiting for its end", flush=True)
        held = lock.acquire()
    with held:
        for left in root.glob(f".{name}.making-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.making-", dir=root, ignore_cleanup_errors=True) as scratch:
            yield Path(scratch)


def _check(settings: Settings) -> None:
    """ValueError with one line for settings of which nothing can be made."""
    get_style(settings.style)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", settings.name):
        raise ValueError(f"houses: name {settings.name!r} names a folder: use letters, digits, _ and - only")
    if settings.seed < 0:
        raise ValueError(f"houses: seed {settings.seed} is negative: use 0 or more")
    numbers = {key: value for key, value in asdict(settings).items() if "scene" in key or "episodes" in key}
    for key, value in numbers.items():
        if value < 0:
            raise ValueError(f"houses: {key} is {value}: use 0 or more")
    if settings.train_scenes + settings.val_unseen_scenes == 0:
        raise ValueError("houses: train_scenes and val_unseen_scenes are both 0: nothing to make")
    if settings.val_seen_episodes and not settings.train_scenes:
        raise ValueError("houses: val_seen_episodes need train_scenes: give some or set val_seen_episodes to 0")
    if not settings.door_shares or min(settings.door_shares) < 0 or not sum(settings.door_shares):
        raise ValueError(f"houses: door_shares {settings.door_shares}: use shares of 0, 1, 2, … doors, not all 0")
    if not all(1 <= count <= MOST_CLAUSES for count in settings.clauses):
        raise ValueError(f"houses: clauses {settings.clauses}: use numbers of clauses from 1 to {MOST_CLAUSES}")
    if settings.clauses and 90 % settings.turn_angle:
        raise ValueError(f"houses: turn_angle {settings.turn_angle}: long ways need one that divides 90 degrees")
    if len(settings.corridor) != 2 or not 8.5 <= settings.corridor[0] <= settings.corridor[1] <= 40:
        raise ValueError(f"houses: corridor {settings.corridor}: give its shortest and longest, between 8.5 and 40 m")
    if not 0 <= settings.start_turn <= 180:
        raise ValueError(f"houses: start_turn {settings.start_turn}: use 0 to 180 degrees")
    if not 1 <= settings.turn_angle <= 90 or not 0.05 <= settings.forward_step <= 0.5:
        raise ValueError(
            f"houses: turn_angle {settings.turn_angle} or forward_step {settings.forward_step} is out of range: "
            "use 1 to 90 degrees and 0.05 to 0.5 m"
        )


def _is_made(folder: Path, settings: Settings) -> bool:
    """Whether the folder holds this very set; ValueError if it holds something else."""
    if not folder.exists():
        return False
    manifest = folder / _MANIFEST
    try:
        found = {**_OLD, **json.loads(manifest.read_bytes())}
    except (OSError, ValueError, TypeError):
        found = {}
    wanted = json.loads(json.dumps(asdict(settings)))
    different = [f"{key} {found.get(key)!r} not {value!r}" for key, value in wanted.items() if found.get(key) != value]
    if different:
        reason = "; ".join(different) if found else "no whole manifest.json"
        raise ValueError(
            f"houses: {folder} holds another set ({reason}); remove the folder, pass the same arguments, "
            "or choose another name"
        )
    return True


def made_settings(folder: Path) -> Settings:
    """What the set in a folder was made of; ValueError where there is none."""
    try:
        row = json.loads((folder / _MANIFEST).read_bytes())
        return Settings(**{**_OLD, **row, "door_shares": tuple(row["door_shares"])})
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"houses: {folder} holds no whole set: make the houses first") from None


def _make(settings: Settings, scratch: Path, num_workers: int) -> None:
    """Make the whole set below `scratch`, in folders `scenes` and `episodes`."""
    jobs = _jobs(settings, scratch / "scenes")
    splits: dict[str, list[dict]] = {"train": [], "val_seen": [], "val_unseen": []}
    with tqdm(total=len(jobs), desc=f"Making houses '{settings.name}'", unit="house") as bar:
        for made in _run(jobs, num_workers):
            for split, entries in made.items():
                splits[split] += entries
            bar.update()
    number = 0
    for split, entries in splits.items():
        _write_split(scratch / "episodes" / split, split, entries, number, _word_index(bool(settings.clauses)))
        number += len(entries)
    for folder in ("scenes", "episodes"):
        text = json.dumps(asdict(settings), indent=2) + "\n"
        (scratch / folder).mkdir(exist_ok=True)
        (scratch / folder / _MANIFEST).write_text(text, encoding="utf-8")


def _jobs(settings: Settings, scenes: Path) -> list[_Job]:
    """The train houses (which share out the val_seen episodes) and the unseen ones."""
    count, seen = settings.train_scenes, settings.val_seen_episodes
    jobs = []
    for index in range(count):
        share = (index + 1) * seen // count - index * seen // count
        wanted = {"train": settings.train_episodes_per_scene, "val_seen": share}
        jobs.append(_Job(settings, scenes, index, False, wanted))
    wanted = {"val_unseen": settings.val_unseen_episodes_per_scene}
    return jobs + [_Job(settings, scenes, i, True, wanted) for i in range(settings.val_unseen_scenes)]


def _run(jobs: list[_Job], num_workers: int) -> Iterator[dict[str, list[dict]]]:
    """The houses' episodes in the order of the jobs."""
    if num_workers <= 1:
        yield from map(_make_house, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), context, _end_with_maker) as pool:
        yield from pool.map(_make_house, jobs, chunksize=2)


def _end_with_maker() -> None:
    """In a pool's worker, which would wait for work for ever when the process that gives it has been killed."""

    def watch() -> None:
        maker = multiprocessing.parent_process()
        if maker is not None:
            maker.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_house(job: _Job) -> dict[str, list[dict]]:
    """Make one house with its files; its episodes by split, each with its ground truth under "gt"."""
    settings = job.settings
    style = get_style(settings.style)
    for attempt in range(100):
        rng = np.random.default_rng([settings.seed, int(job.unseen), job.index, attempt])
        world = make_world(
            rng, style, job.scenes / job.house, job.house, corridor=settings.corridor if settings.clauses else ()
        )
        made: dict[str, list[dict]] = {}
        for split, count in job.wanted.items():
            if settings.clauses:
                made[split] = _draw_long(rng, world, job, count, settings.must_count and split != "train")
            else:
                made[split] = _draw_episodes(rng, world, job, count)
            if len(made[split]) < count:
                break
        else:
            return made
    raise RuntimeError(f"houses: no episodes found for house {job.house} of seed {settings.seed}; try another seed")


def _draw_episodes(rng: np.random.Generator, world: World, job: _Job, count: int) -> list[dict]:
    """Up to `count` episodes; a goal serves at most _SHARED of them, from different starts."""
    settings = job.settings
    episodes: list[dict] = []
    used: dict[str, int] = {}
    for _ in range(_GOAL_TRIES * count):
        if len(episodes) == count:
            break
        goal = draw_goal(rng, world, used)
        if goal is None:
            continue
        found = 0
        for _ in range(_START_TRIES):
            if found == _SHARED or len(episodes) == count:
                break
            route = draw_route(
                rng,
                world,
                goal,
                settings.forward_step,
                settings.turn_angle,
                settings.door_shares,
                math.radians(settings.start_turn),
            )
            if route is not None:
                found += 1
                used[goal.piece.name] = used.get(goal.piece.name, 0) + 1
                episodes.append(_episode(rng, world, route, job))
    return episodes


def _draw_long(rng: np.random.Generator, world: World, job: _Job, count: int, must_count: bool) -> list[dict]:
    """Up to `count` episodes with long ways, their numbers of clauses in turn."""
    settings = job.settings
    episodes: list[dict] = []
    for number in range(count):
        clauses = settings.clauses[(number + job.index) % len(settings.clauses)]
        for _ in range(_LONG_TRIES):
            told = draw_told_way(rng, world, clauses, settings.forward_step, settings.turn_angle, must_count)
            if told is not None:
                way, text, geodesic = told
                doors = sum(leg.door is not None for leg in way.legs)
                info = {"geodesic_distance": round(geodesic, 4), "doors": doors, "clauses": clauses}
                episodes.append(_entry(job, way.points, way.heading, way.walk, text, info))
                break
        else:
            break  # the house has no such way: no need to look for others
    return episodes


def _episode(rng: np.random.Generator, world: World, route: Route, job: _Job) -> dict:
    """An episode with a short way."""
    text, clauses = write_instruction(rng, world.plan, route, job.settings.turn_angle)
    info = {"geodesic_distance": round(route.geodesic, 4), "doors": len(route.crossings), "clauses": clauses}
    return _entry(job, route.points, route.heading, route.walk, text, info)


def _entry(job: _Job, path: np.ndarray, heading: float, walk: Walk, text: str, info: dict) -> dict:
    """An episode of the R2R-CE schema, ids still missing."""
    settings = job.settings
    points = [[float(v) for v in p] for p in path]
    actions = walk.actions
    locations = [[round(v, 4) for v in p] for p in walk.locations]
    index = _word_index(bool(settings.clauses))
    return {
        "scene_id": f"{settings.name}/{job.house}/{job.house}.glb",
        "start_position": points[0],
        "start_rotation": [0.0, math.sin(heading / 2), 0.0, math.cos(heading / 2)],
        "info": info,
        "goals": [{"position": points[-1], "radius": settings.goal_radius}],
        "instruction": {"instruction_text": text, "instruction_tokens": [index[w] for w in words_of(text)]},
        "reference_path": points,
        "gt": {"locations": locations, "actions": actions, "forward_steps": actions.count(FORWARD)},
    }


@functools.cache
def _word_index(long: bool) -> dict[str, int]:
    """Number of every word of the vocabulary, the same in every set of short and in every set of long ways."""
    words = directions.vocabulary() if long else vocabulary()
    return {word: k for k, word in enumerate(_SPECIAL_WORDS + words)}


def _write_split(folder: Path, split: str, entries: list[dict], first: int, index: dict[str, int]) -> None:
    """Write `{split}.json.gz` and `{split}_gt.json.gz`; ids count from `first` + 1."""
    words = list(index)
    episodes, truth = [], {}
    for number, entry in enumerate(entries, start=first + 1):
        rest = dict(entry)
        truth[str(number)] = rest.pop("gt")
        episodes.append({"episode_id": number, "trajectory_id": number, **rest})
    vocab = {
        "word_list": words,
        "word2idx_dict": index,
        "stoi": index,
        "itos": words,
        "num_vocab": len(words),
        "UNK_INDEX": 1,
        "PAD_INDEX": 0,
    }
    folder.mkdir(parents=True)
    write_gz(folder / f"{split}.json.gz", {"episodes": episodes, "instruction_vocab": vocab})
    write_gz(folder / f"{split}_gt.json.gz", truth)


def write_gz(path: Path, content: dict) -> None:
    """Compressed JSON without a time stamp: equal content, equal bytes."""
    path.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0))
