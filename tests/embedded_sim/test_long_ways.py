"""Long ways: whether their words can be followed on the plan, to nowhere but the goal, and not without memory."""

import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from habitat_embedded_sim.houses import ensure
from habitat_embedded_sim.houses.corridor import CORRIDOR, furnish_corridor_plan, make_corridor_plan
from habitat_embedded_sim.houses.directions import ALL, ORDINALS, vocabulary
from habitat_embedded_sim.houses.furnish import Piece
from habitat_embedded_sim.houses.instructions import words_of
from habitat_embedded_sim.houses.plan import Door, Plan, Rect, Room
from habitat_embedded_sim.houses.plan_file import read_plan, write_plan
from habitat_embedded_sim.houses.reader import is_clear, leads_to, read
from habitat_embedded_sim.houses.style import PLAIN, STYLES

SMALL = {
    "name": "long",
    "style": "plain",
    "train_scenes": 1,
    "train_episodes_per_scene": 5,
    "val_seen_episodes": 2,
    "val_unseen_scenes": 1,
    "val_unseen_episodes_per_scene": 5,
    "turn_angle": 30.0,
    "forward_step": 0.5,
    "clauses": (1, 2, 3, 4, 5),
    "num_workers": 1,
}
OTHER = {"left": "right", "right": "left"}
EAST, NORTH, WEST = -math.pi / 2, 0.0, math.pi / 2


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    ensure(root, **SMALL)
    return root


def episodes_of(root: Path) -> list[tuple[dict, dict, Plan, list[Piece]]]:
    """Every episode with its ground truth, and plan and furniture of its house."""
    found = []
    for split in ("train", "val_seen", "val_unseen"):
        folder = root / "datasets/vln/long" / split
        files = [folder / f"{split}{end}.json.gz" for end in ("", "_gt")]
        content, truth = (json.loads(gzip.decompress(file.read_bytes())) for file in files)
        for episode in content["episodes"]:
            scene = root / "scene_datasets" / episode["scene_id"]
            plan, pieces = read_plan(scene.with_name(f"{scene.stem}_plan.json"))
            found.append((episode, truth[str(episode["episode_id"])], plan, pieces))
            words = content["instruction_vocab"]["word_list"]
            spoken = [words[token] for token in episode["instruction"]["instruction_tokens"]]
            assert spoken == words_of(episode["instruction"]["instruction_text"])
    return found


def follow(episode: dict, plan: Plan, pieces: list[Piece], text: str | None = None, remembers: bool = True) -> float:
    """Whether the episode's words (or `text`) lead to its goal; without memory, how often they do."""
    (x, _, z), (_, y, _, w) = episode["start_position"], episode["start_rotation"]
    goal_x, _, goal_z = episode["goals"][0]["position"]
    text = text or episode["instruction"]["instruction_text"]
    readings = read(text, plan, pieces, (x, z), 2 * math.atan2(y, w), remembers)
    goal = plan.room_at(goal_x, goal_z), (goal_x, goal_z)
    return float(is_clear(readings, *goal)) if remembers else leads_to(readings, *goal)


def test_the_reader_follows_all_words_to_the_goal_and_needs_its_memory(data_dir: Path) -> None:
    chances = []
    for episode, _, plan, pieces in episodes_of(data_dir):
        assert follow(episode, plan, pieces) == 1
        chances.append(follow(episode, plan, pieces, remembers=False))
    assert max(chances) < 0.51 and np.mean(chances) < 0.45


def test_changed_words_lead_elsewhere(data_dir: Path) -> None:
    counted, swapped = [], []
    for episode, _, plan, pieces in episodes_of(data_dir):
        text = episode["instruction"]["instruction_text"]
        said = next((word for word in ORDINALS if f"the {word} " in text), None)
        if said:
            other = ORDINALS[ORDINALS.index(said) + 1]
            counted.append(follow(episode, plan, pieces, text.replace(f"the {said} ", f"the {other} ", 1)))
        if "left" in text or "right" in text:
            swapped.append(follow(episode, plan, pieces, re.sub("left|right", lambda found: OTHER[found[0]], text)))
        assert follow(episode, plan, pieces, f"{text} Sing a song.") == 0
        assert follow(episode, plan, pieces, ". ".join(text.split(". ")[:-1]) or "Turn left.") == 0  # without its end
    assert len(counted) > 3 and not any(counted)
    assert sum(swapped) < len(swapped) / 3  # things that stand opposite each other are near enough


def test_ways_are_as_long_and_lead_through_as_many_rooms_as_their_clauses_say(data_dir: Path) -> None:
    seen = set()
    for episode, truth, plan, _ in episodes_of(data_dir):
        clauses = episode["info"]["clauses"]
        seen.add(clauses)
        rooms = {plan.room_at(x, z) for x, _, z in truth["locations"]}
        assert 10 * min(clauses, 3) <= len(truth["actions"]) <= 60
        assert min(clauses, 3) <= len(rooms) <= 5
        assert math.dist(truth["locations"][-1], episode["goals"][0]["position"]) < 1
        assert math.dist(episode["start_position"], episode["goals"][0]["position"]) > 2
    assert seen == {1, 2, 3, 4, 5}


def test_same_arguments_give_the_same_files_with_any_number_of_workers(data_dir: Path, tmp_path: Path) -> None:
    ensure(tmp_path, **{**SMALL, "num_workers": 2})
    files = sorted(path.relative_to(data_dir) for path in data_dir.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((data_dir / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)
    with pytest.raises(ValueError, match=r"clauses \[1, 2, 3, 4, 5\] not \[3\]"):
        ensure(tmp_path, **{**SMALL, "clauses": (3,)})


@pytest.mark.parametrize("wrong", [{"clauses": (0,)}, {"clauses": (6,)}, {"turn_angle": 40.0}])
def test_wrong_arguments_are_named(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ensure(tmp_path, **{**SMALL, **wrong})


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(4))
def test_corridors_connect_all_rooms_and_their_things_repeat(style: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    plan = make_corridor_plan(rng, STYLES[style])
    pieces = furnish_corridor_plan(rng, plan)
    assert {CORRIDOR, *(d.rooms[1] for d in plan.doors if CORRIDOR in d.rooms)} == {room.index for room in plan.rooms}
    assert len({room.colour for room in plan.rooms}) <= 3
    assert len({piece.name for piece in pieces}) == len({piece.kind for piece in pieces}) < len(pieces)
    for piece in pieces:
        inside = plan.rooms[piece.room].inside
        assert inside.contains(piece.footprint.x0, piece.footprint.z0)
        assert inside.contains(piece.footprint.x1, piece.footprint.z1)
        assert not any(piece.footprint.overlaps(door.zone(0.9, 0.5)) for door in plan.doors)
        same = [p for p in pieces if p.room == piece.room and p.kind == piece.kind and p.front == piece.front]
        assert all(math.dist((p.x, p.z), (piece.x, piece.z)) > 2.3 for p in same if p is not piece)
    write_plan(tmp_path / "plan.json", plan, pieces)
    assert read_plan(tmp_path / "plan.json") == (plan, pieces)


def test_a_file_that_is_no_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"style": "plain"}')
    with pytest.raises(ValueError, match=r"plan\.json is no floor plan"):
        read_plan(tmp_path / "plan.json")


@pytest.fixture
def house() -> tuple[Plan, list[Piece]]:
    """A corridor along x, z from 0 to 2, with rooms at x 0–4, 4–8, 8–12 on its north side and one south of it."""
    rects = [Rect(0, 0, 12, 2), Rect(0, -4, 4, 0), Rect(4, -4, 8, 0), Rect(8, -4, 12, 0), Rect(0, 2, 12, 6)]
    rooms = [Room(k, rect, "hallway" if k == CORRIDOR else "office") for k, rect in enumerate(rects)]
    doors = [Door(k, (0, k + 1), "z", 0.0, 2.0 + 4 * k) for k in range(3)]
    doors += [Door(3, (0, 4), "z", 2.0, 6.0), Door(4, (1, 2), "x", 4.0, -2.0)]
    things = [(0, x, 0.1) for x in (0.5, 4.0, 8.0)] + [(k, 4.0 * k - 2, -3.9) for k in (1, 2, 3)]
    pieces = [
        Piece("chair" if room == 0 else "sofa", "red", room, 0, x, z, Rect(x - 0.4, z, x + 0.4, z + 0.5))
        for room, x, z in things
    ]
    return Plan(PLAIN, Rect(0, -4, 12, 6), rooms, doors), pieces


@pytest.mark.parametrize(
    ("text", "heading", "place"),
    [
        ("Take the second door on your left. Stop at the sofa.", EAST, (6, -2.8)),
        ("Go through the last door on the left. Wait at the red sofa.", EAST, (10, -2.8)),
        ("Take the second door on your right. Stop at the sofa.", EAST, None),  # there is one
        ("Turn around, then take the first door on your right. Stop at the sofa.", WEST, None),  # then on the left
        ("Turn around, then take the first door on your left. Stop at the sofa.", WEST, (2, -2.8)),
        ("Stop at the second chair on your left.", EAST, (8, 1.2)),
        ("Walk past two chairs and take the next door on your left. Stop at the sofa.", EAST, (10, -2.8)),
        ("Walk past three chairs and take the next door on your left. Stop at the sofa.", EAST, None),
        ("Go into the first room on your left. Go through the door on your right into the next room. "
         "Go out into the corridor and turn right. Stop at the first chair on your right.", EAST, (4, 1.2)),
        ("Take the second door on your left. Go up to the sofa, turn around and leave by the door you came in by. "
         "Cross the corridor and go through the door opposite. Stop at the sofa.", EAST, None),  # no sofa there
        ("Take the first door on your left. Go up to the sofa, turn around and leave by the door you came in by, "
         "then turn left. Take the first door on your left. Stop at the sofa.", EAST, (6, -2.8)),
        ("Take the first door on your left. Go up to the bed. Stop at the sofa.", EAST, None),
    ],
)  # fmt: skip
def test_requests_mean_what_they_say(
    text: str, heading: float, place: tuple[float, float] | None, house: tuple[Plan, list[Piece]]
) -> None:
    readings = read(text, *house, (1.2, 1.0), heading)
    assert {tuple(round(v, 3) for v in reading.place) for reading in readings} == ({place} if place else set())


def test_back_to_the_first_room_needs_to_know_which_it_was(house: tuple[Plan, list[Piece]]) -> None:
    text = "{} Go into the first room on your {}. Go up to the sofa, then go back to the room where you began. "
    text = text.format("Leave the room and turn left.", "left") + "Stop at the sofa."
    readings = read(text, *house, (9.0, -2.0), NORTH)
    assert readings == []  # east of the last door there is no door on the left
    text = text.replace("turn left", "turn right").replace("your left", "your right")
    readings = read(text, *house, (9.0, -2.0), NORTH)
    assert [round(reading.place[0]) for reading in readings] == [10]
    forgetful = read(text, *house, (9.0, -2.0), NORTH, remembers=False)
    assert 0 < leads_to(forgetful, 3, (10, -2.8)) < 0.5


def test_words_with_two_meanings_are_not_clear(house: tuple[Plan, list[Piece]]) -> None:
    plan, pieces = house
    beside = read("Take the first door on your left. Stop at the sofa.", plan, pieces, (2.2, 1.0), EAST)
    assert len(beside) == 2 and not is_clear(beside, 1, (2, -2.8))  # the door abeam, or the next one?
    twin = replace(pieces[3], x=0.6, footprint=Rect(0.2, -3.9, 1.0, -3.4))
    sofas = read("Take the first door on your left. Stop at the sofa.", plan, [*pieces, twin], (0.2, 1.0), EAST)
    assert len(sofas) == 2 and not is_clear(sofas, 1, (2, -2.8))


def test_the_vocabulary_holds_every_template_and_is_small() -> None:
    words = set(vocabulary())
    assert len(words) < 130
    assert all(set(words_of(template)) - {"nth", "side", "thing", "kind", "number"} <= words for template in ALL)
