"""Questions about what a walk has shown, with their answers: embodied question answering on the made houses.

A question is asked at the end of an episode's recorded walk, and is about what its frames have shown. The categories
are OpenEQA's. Object state recognition has none: doors are openings, and no thing of these houses has two states.

`ensure` writes them as a data set of Habitat's own EQA task (`MP3DEQA-v1`): an episode per question, whose shortest
path is the walk. What that form has no place for stands in `info`.
"""

import gzip
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from habitat_embedded_sim.houses.dataset import Settings, made_settings, write_gz
from habitat_embedded_sim.houses.furniture import KINDS
from habitat_embedded_sim.houses.sights import CLEAR, Eyes, House, Thing, Walked, poses_of
from habitat_embedded_sim.houses.style import get_style

VERSION = 1  # of the questions: raise it when the same arguments give others
SPLITS = ("train", "val_seen", "val_unseen")
FUNCTIONS = {
    "sleep in": ("bed",),
    "take a bath in": ("bathtub",),
    "keep food cold in": ("fridge",),
    "hang clothes in": ("wardrobe",),
    "sit on": ("sofa", "armchair", "bench", "chair"),
    "cook on": ("stove",),
}
"""What somebody can do with which kinds of furniture."""
_LOOSE = 1.25  # an answer may be so much more frequent than the mean of its kind of question's answers
_MANIFEST = "manifest.json"
_UNKNOWN = "<unk>"
_SIDES = ("left", "ahead", "right")


@dataclass(frozen=True)
class Question:
    """A question about a walk.

    Args:
        asks: the kind of question; answers are balanced within it.
        category: OpenEQA's.
        text: the question.
        answers: what is right, the first one written out.
    """

    asks: str
    category: str
    text: str
    answers: tuple[str, ...]


def questions_of(house: House, walked: Walked, rooms: dict[str, str]) -> list[Question]:
    """All questions that a walk allows. Each means one thing: what could also be meant was hardly in sight.

    Args:
        rooms: kinds of furniture that tell what kind of room they stand in, e.g. {"bed": "bedroom"}.
    """
    glimpsed = [thing for thing in house.things if walked.glimpsed(thing.semantic_id)]
    clear = [thing for thing in glimpsed if walked.clear(thing.semantic_id)]
    kinds, colours = (Counter(getattr(thing, what) for thing in glimpsed) for what in ("kind", "colour"))
    found: list[Question] = []
    for thing in clear:
        if kinds[thing.kind] == 1:
            found += _about_kind(house, walked, thing)
        if colours[thing.colour] == 1:
            text, answers = f"What is the {thing.colour} thing?", (thing.kind, f"{thing.colour} {thing.kind}")
            found.append(Question("kind", "object recognition", text, answers))
        if thing.kind in rooms and walked.clear(house.wall_ids[thing.room]):
            text = f"What kind of room is the {house.walls[thing.room]} room?"
            found.append(Question("room kind", "world knowledge", text, (rooms[thing.kind],)))
    found += _functions(clear, glimpsed)
    for room, floor in house.floors.items():
        if walked.clear(house.floor_ids[room]) and walked.clear(house.wall_ids[room]):
            text = f"What is the floor of the {house.walls[room]} room?"
            found.append(Question("floor", "attribute recognition", text, (floor, f"{floor} floor")))
    if glimpsed and all(walked.there(thing.semantic_id) for thing in glimpsed):
        text, count = "How many pieces of furniture did you see?", str(len(glimpsed))
        found.append(Question("count", "spatial understanding", text, (count, _NUMBERS.get(count, count))))
    return list(dict.fromkeys(found))


_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {str(number): word for number, word in enumerate(_WORDS)}


def _about_kind(house: House, walked: Walked, thing: Thing) -> Iterator[Question]:
    """Questions that name a thing by its kind."""
    colour, wall = thing.colour, house.walls[thing.room]
    text = f"What colour is the {thing.kind}?"
    yield Question("colour", "attribute recognition", text, (colour, f"{colour} {thing.kind}"))
    if walked.clear(house.wall_ids[thing.room]):
        text = f"In which room is the {thing.kind}?"
        yield Question("room", "object localization", text, (f"{wall} room", f"in the {wall} room", wall))
    if walked.share_now(thing.semantic_id) >= CLEAR:
        middle = float(np.median((walked.last == thing.semantic_id).nonzero()[1])) / walked.last.shape[1]
        # What lies on the border of two sides is not asked for.
        side = next((s for s, (low, high) in zip(_SIDES, _THIRDS, strict=True) if low <= middle < high), None)
        if side:
            yield Question("side", "spatial understanding", f"On which side is the {thing.kind} now?", (side,))


_THIRDS = ((0.0, 0.3), (0.4, 0.6), (0.7, 1.0))


def _functions(clear: list[Thing], glimpsed: list[Thing]) -> Iterator[Question]:
    for function, kinds in FUNCTIONS.items():
        able = [thing for thing in glimpsed if thing.kind in kinds]
        if len(able) == 1 and able[0] in clear:
            thing = able[0]
            answers = (thing.colour, f"{thing.colour} {thing.kind}")
            yield Question("function", "functional reasoning", f"What colour is the thing to {function}?", answers)


def telling_kinds(style: str) -> dict[str, str]:
    """Kinds of furniture that a style puts into one kind of room alone, and that kind of room."""
    homes = {kind: [room for room, own in get_style(style).kinds.items() if kind in own] for kind in KINDS}
    return {kind: rooms[0] for kind, rooms in homes.items() if len(rooms) == 1}


def balanced(rng: np.random.Generator, asked: list[tuple[int, Question]]) -> list[tuple[int, Question]]:
    """The questions (of walks by number) without those whose answers are too frequent.

    Of each kind of question, and of each wording, no answer is much more frequent than the mean: who answers without
    looking gains little.
    """
    for group in ("asks", "text"):
        counts: dict[str, Counter[str]] = {}
        for _, question in asked:
            counts.setdefault(getattr(question, group), Counter())[question.answers[0]] += 1
        most = {name: math.ceil(_LOOSE * _mean(own)) for name, own in counts.items()}
        kept: Counter[tuple[str, str]] = Counter()
        chosen = []
        for number in rng.permutation(len(asked)):
            question = asked[int(number)][1]
            key = getattr(question, group), question.answers[0]
            if kept[key] < most[key[0]]:
                kept[key] += 1
                chosen.append(int(number))
        asked = [asked[number] for number in sorted(chosen)]
    return asked


def _mean(counts: Counter[str]) -> float:
    """The mean number of a question's answers, without the rare ones, which would keep all others rare."""
    often = [count for count in counts.values() if count >= max(counts.values()) / 8]
    return sum(often) / len(often)


def spread(rng: np.random.Generator, asked: list[tuple[int, Question]], per_walk: int) -> list[tuple[int, Question]]:
    """At most `per_walk` questions about each walk, those of rare categories first."""
    frequency = Counter(question.category for _, question in asked)
    order = sorted(rng.permutation(len(asked)), key=lambda i: frequency[asked[int(i)][1].category])
    taken: Counter[int] = Counter()
    chosen = []
    for number in map(int, order):
        walk = asked[number][0]
        if taken[walk] < per_walk:
            taken[walk] += 1
            chosen.append(number)
    return [asked[number] for number in sorted(chosen)]


# -------------------------------------------------------------------------------------------------------- on disk
def ensure(data_dir: str | Path = "data", name: str = "embedded", per_walk: int = 8, seed: int = 0) -> None:
    """Make the questions about the recorded walks of the houses `name`, unless they are there.

    They go to `<data_dir>/datasets/eqa/<name>/<split>/<split>.json.gz`. The same arguments and houses give the same
    files. ValueError if the houses are not there, or the folder holds other questions.
    """
    root = Path(data_dir)
    walks, place = root / "datasets" / "vln" / name, root / "datasets" / "eqa" / name
    houses = made_settings(walks)
    claim = {"version": VERSION, "per_walk": per_walk, "seed": seed, "houses": asdict(houses)}
    claim = json.loads(json.dumps(claim))
    if _is_made(place, claim):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=place.parent) as scratch:
        made = Path(scratch) / name
        for number, split in enumerate(SPLITS):
            rng = np.random.default_rng([seed, number])
            _make_split(rng, root, houses, split, per_walk, made / split / f"{split}.json.gz")
        (made / _MANIFEST).write_text(json.dumps(claim, indent=2) + "\n", encoding="utf-8")
        if not _is_made(place, claim):  # another process may have been first
            os.rename(made, place)


def _is_made(place: Path, claim: dict) -> bool:
    """Whether the folder holds these very questions; ValueError if it holds others."""
    if not place.exists():
        return False
    try:
        found = json.loads((place / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        found = None
    if found != claim:
        raise ValueError(f"questions: {place} holds other questions; remove the folder or choose another name")
    return True


def _make_split(rng: np.random.Generator, root: Path, houses: Settings, split: str, per_walk: int, file: Path) -> None:
    folder = root / "datasets" / "vln" / houses.name / split
    episodes = json.loads(gzip.decompress((folder / f"{split}.json.gz").read_bytes()))["episodes"]
    truth = json.loads(gzip.decompress((folder / f"{split}_gt.json.gz").read_bytes()))
    scenes = root / "scene_datasets"
    by_scene: dict[str, list[dict]] = {}
    for episode in episodes:
        by_scene.setdefault(episode["scene_id"], []).append(episode)
    rooms = telling_kinds(houses.style)
    walks: list[tuple[dict, dict]] = []
    asked: list[tuple[int, Question]] = []
    for scene, own in tqdm(by_scene.items(), desc=f"Asking about '{houses.name}', {split}", unit="house"):
        house, eyes = House.read(scenes / scene), Eyes(scenes / scene)
        for episode in own:
            gt = truth[str(episode["episode_id"])]
            walked = eyes.walk(poses_of(episode, gt, houses.turn_angle))
            asked += [(len(walks), question) for question in questions_of(house, walked, rooms)]
            walks.append((episode, gt))
    asked = spread(rng, balanced(rng, asked), per_walk)
    file.parent.mkdir(parents=True)
    write_gz(file, eqa_file([(*walks[walk], question) for walk, question in asked], houses.turn_angle))


def eqa_file(asked: list[tuple[dict, dict, Question]], turn_angle: float) -> dict:
    """Questions about (episode, ground truth)s in the form of Habitat's MP3D-EQA."""
    words = sorted({word for *_, question in asked for word in words_of(question.text)})
    answers = sorted({question.answers[0] for *_, question in asked})
    # Habitat puts this word first where a vocabulary lacks it.
    word_ids, answer_ids = ({word: k for k, word in enumerate([_UNKNOWN, *own])} for own in (words, answers))
    count: Counter[str] = Counter()
    episodes = []
    for episode, gt, question in asked:
        walk = str(episode["episode_id"])
        count[walk] += 1
        poses = poses_of(episode, gt, turn_angle)
        points = [
            {"position": position, "rotation": [0.0, math.sin(h / 2), 0.0, math.cos(h / 2)], "action": action}
            for (position, h), action in zip(poses, gt["actions"], strict=True)
        ]
        episodes.append(
            {
                "episode_id": f"{walk}-{count[walk]}",
                "scene_id": episode["scene_id"],
                "start_position": episode["start_position"],
                "start_rotation": episode["start_rotation"],
                "info": {"walk": walk, "category": question.category, "extra_answers": list(question.answers[1:])},
                "goals": [{"position": poses[-1][0], "radius": episode["goals"][0]["radius"], "object_id": -1}],
                "shortest_paths": [points],
                "question": {
                    "question_text": question.text,
                    "answer_text": question.answers[0],
                    "question_tokens": [word_ids[word] for word in words_of(question.text)],
                    "answer_token": answer_ids[question.answers[0]],
                    "question_type": question.asks,
                },
            }
        )
    vocabularies = {"question_vocab": {"word_list": list(word_ids)}, "answer_vocab": {"word_list": list(answer_ids)}}
    return {"episodes": episodes, **vocabularies}


def words_of(text: str) -> list[str]:
    """The words of a question, lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())
