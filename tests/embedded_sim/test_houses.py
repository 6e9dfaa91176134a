"""Generated houses: what is written, whether it can be walked, and whether the words tell the truth."""

import gzip
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from habitat_embedded_sim.bvh import Bvh
from habitat_embedded_sim.houses import ensure
from habitat_embedded_sim.houses.__main__ import main
from habitat_embedded_sim.houses.expert import FORWARD, LEFT, STOP, walk
from habitat_embedded_sim.houses.furnish import furnish
from habitat_embedded_sim.houses.instructions import PHRASES, vocabulary, words_of
from habitat_embedded_sim.houses.plan import MIN_SIDE, make_plan
from habitat_embedded_sim.houses.style import STYLES
from habitat_embedded_sim.mesh import Mesh
from habitat_embedded_sim.navmesh import NavGrid
from habitat_embedded_sim.render import Camera, local_rays

SMALL = {
    "train_scenes": 2,
    "train_episodes_per_scene": 4,
    "val_seen_episodes": 3,
    "val_unseen_scenes": 1,
    "val_unseen_episodes_per_scene": 3,
    "num_workers": 1,
}
SPLITS = {"train": 8, "val_seen": 3, "val_unseen": 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    ensure(root, **SMALL)
    return root


def read(root: Path, split: str, suffix: str = "") -> dict:
    path = root / "datasets/vln/embedded" / split / f"{split}{suffix}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def all_episodes(root: Path) -> list[tuple[dict, dict]]:
    """Every episode of every split with its ground truth."""
    found = []
    for split in SPLITS:
        truth = read(root, split, "_gt")
        found += [(episode, truth[str(episode["episode_id"])]) for episode in read(root, split)["episodes"]]
    return found


class House:
    """A written house, read back: mesh, walkable grid, categories by semantic id, and what an eye sees."""

    def __init__(self, root: Path, scene_id: str) -> None:
        path = root / "scene_datasets" / scene_id
        self.mesh = Mesh.load(path)
        self.grid = NavGrid.build(self.mesh.vertices, self.mesh.faces)
        lines = path.with_name(f"{path.stem}_semantic.txt").read_text().splitlines()
        assert lines[0] == "HM3D Semantic Annotations"
        rows = [re.fullmatch(r'(\d+),([0-9A-F]{6}),"([a-z ]+)",(\d+)', line).groups() for line in lines[1:]]
        self.category = {int(number): name for number, _, name, _ in rows}
        self.colour_codes = [colour for _, colour, _, _ in rows]
        self._caster = Bvh(self.mesh.vertices, self.mesh.faces)

    def look(self, position: list[float], heading: float, size: int = 84) -> tuple[np.ndarray, np.ndarray]:
        """(face hit by every pixel [N], ray directions [N, 3]) of a camera 1.25 m above `position`."""
        cos, sin = math.cos(heading), math.sin(heading)
        rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], np.float32)
        rays = np.ascontiguousarray(local_rays(Camera(size, size, 90.0)) @ rotation.T)
        eye = np.array([position[0], position[1] + 1.25, position[2]], np.float32)
        return self._caster.cast(eye, rays)[0], rays

    def bounds_of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the object of that category."""
        number = next(i for i, category in self.category.items() if category == name)
        points = self.mesh.vertices[self.mesh.faces[self.mesh.semantic_ids == number]].reshape(-1, 3)
        return points.min(0), points.max(0)


@pytest.fixture(scope="module")
def houses(data_dir: Path) -> dict[str, House]:
    names = {episode["scene_id"] for episode, _ in all_episodes(data_dir)}
    return {name: House(data_dir, name) for name in names}


def headings_of(episode: dict, truth: dict) -> list[tuple[list[float], float]]:
    """(position, heading) before every action."""
    _, y, _, w = episode["start_rotation"]
    heading, places = 2 * math.atan2(y, w), iter(truth["locations"])
    position, poses = next(places), []
    for action in truth["actions"]:
        poses.append((position, heading))
        if action == FORWARD:
            position = next(places)
        elif action != STOP:
            heading += math.radians(30 if action == LEFT else -30)
    return poses


def test_splits_follow_the_r2r_schema(data_dir: Path) -> None:
    ids, scenes = [], {}
    for split, count in SPLITS.items():
        content = read(data_dir, split)
        assert len(content["episodes"]) == count
        assert content["instruction_vocab"]["num_vocab"] == len(content["instruction_vocab"]["word_list"]) < 250
        scenes[split] = {episode["scene_id"] for episode in content["episodes"]}
        for episode in content["episodes"]:
            ids.append(episode["episode_id"])
            assert episode["goals"][0]["radius"] == 3.0
            assert episode["goals"][0]["position"] == episode["reference_path"][-1]
            assert episode["start_position"] == episode["reference_path"][0]
            assert (data_dir / "scene_datasets" / episode["scene_id"]).is_file()
            words = content["instruction_vocab"]["word_list"]
            spoken = [words[token] for token in episode["instruction"]["instruction_tokens"]]
            assert spoken == words_of(episode["instruction"]["instruction_text"])
    assert len(set(ids)) == sum(SPLITS.values())
    assert not scenes["train"] & scenes["val_unseen"]
    assert scenes["val_seen"] <= scenes["train"]


def test_ground_truth_leads_from_start_to_goal(data_dir: Path, houses: dict[str, House]) -> None:
    for episode, truth in all_episodes(data_dir):
        grid, goal = houses[episode["scene_id"]].grid, episode["goals"][0]["position"]
        assert truth["actions"][-1] == STOP and truth["actions"].count(STOP) == 1
        assert truth["forward_steps"] == truth["actions"].count(FORWARD) == len(truth["locations"]) - 1
        poses = headings_of(episode, truth)
        for (position, heading), (after, _), action in zip(poses, poses[1:], truth["actions"], strict=False):
            if action == FORWARD:
                wanted = np.array(position) - [0.25 * math.sin(heading), 0, 0.25 * math.cos(heading)]
                assert np.allclose(grid.step(position, wanted, slide=True), after, atol=1e-3)
        assert math.dist(poses[-1][0], goal) < 0.5
        distance = grid.find_path(episode["start_position"], [goal])[0]
        assert distance == pytest.approx(episode["info"]["geodesic_distance"], abs=1e-3)
        assert 3 <= distance <= 11


def test_named_things_exist_and_the_goal_is_seen_before_stopping(data_dir: Path, houses: dict[str, House]) -> None:
    for episode, truth in all_episodes(data_dir):
        house, text = houses[episode["scene_id"]], episode["instruction"]["instruction_text"].lower()
        things = set(house.category.values())
        named = [name for name in things if re.search(rf"\b{name}\b", text)]
        stop = max(named, key=text.rfind)
        low, high = house.bounds_of(stop)
        gap = np.maximum(np.maximum(low - truth["locations"][-1], truth["locations"][-1] - high), 0)
        assert np.hypot(gap[0], gap[2]) < 1.3, text
        position, heading = headings_of(episode, truth)[-1]
        seen = house.mesh.semantic_ids[house.look(position, heading)[0]]
        assert sum(house.category[int(i)] == stop for i in seen) > 100, text
        for colour in re.findall(r"the (?!living|dining)(\w+) room|with (\w+) walls", text):
            assert f"{''.join(colour)} wall" in things


def test_passed_landmarks_are_on_the_side_the_words_say(data_dir: Path, houses: dict[str, House]) -> None:
    checked = 0
    for episode, truth in all_episodes(data_dir):
        text = episode["instruction"]["instruction_text"].lower()
        for name, side in re.findall(r"pas[st] the (\w+ \w+) on (?:your|the) (left|right)", text):
            centre = np.mean(houses[episode["scene_id"]].bounds_of(name), axis=0)
            poses = headings_of(episode, truth)
            position, heading = min(poses, key=lambda pose: np.hypot(*(centre - pose[0])[[0, 2]]))
            dx, _, dz = centre - position
            to_right = dx * math.cos(heading) - dz * math.sin(heading)
            assert (to_right > 0) == (side == "right"), (episode["episode_id"], text)
            checked += 1
    assert checked


def test_scene_files_are_small_closed_and_fully_annotated(data_dir: Path, houses: dict[str, House]) -> None:
    for scene_id, house in houses.items():
        assert (data_dir / "scene_datasets" / scene_id).stat().st_size < 300_000
        assert set(house.mesh.semantic_ids.tolist()) == set(house.category)
        assert len(set(house.colour_codes)) == len(house.colour_codes)
        low, high = house.mesh.vertices.min(0), house.mesh.vertices.max(0)
        assert [low[1], high[1]] == pytest.approx([-0.199, 2.5])
        corner = house.mesh.vertices[house.mesh.faces]
        normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        for heading in (0.3, 1.9, 3.5, 5.1):
            position = house.grid.random_point(np.random.default_rng(3), island=0)
            faces, rays = house.look(list(position), heading)
            assert (faces >= 0).all()  # no gap to the outside
            assert ((normal[faces] * rays).sum(1) < 0).all()  # only fronts: a culling renderer shows the same


def test_same_arguments_give_the_same_files_with_any_number_of_workers(data_dir: Path, tmp_path: Path) -> None:
    ensure(tmp_path, **{**SMALL, "num_workers": 2})
    files = sorted(path.relative_to(data_dir) for path in data_dir.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (data_dir / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_an_existing_set_is_kept_and_another_one_refused(data_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    ensure(data_dir, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    with pytest.raises(ValueError, match=r"seed 0 not 5.*remove the folder") as error:
        ensure(data_dir, **SMALL, seed=5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"style": "baroque"}, {"turn_angle": 0}, {"name": "../x"}, {"train_scenes": -1}, {"train_scenes": 0}],
)
def test_wrong_arguments_are_named(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ensure(tmp_path, **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


def test_command_line_takes_every_argument_and_names_a_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["houses", "--data_dir", str(tmp_path), "--door_shares", "0", "0"])
    with pytest.raises(SystemExit):
        main()
    assert "door_shares (0.0, 0.0)" in capsys.readouterr().err


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(8))
def test_plans_connect_and_furniture_is_unique_and_clear_of_doors(style: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = make_plan(rng, STYLES[style])
    pieces = furnish(rng, plan)
    assert 3 <= len(plan.rooms) <= 8
    assert len({room.colour for room in plan.rooms}) == len({room.kind for room in plan.rooms}) == len(plan.rooms)
    assert all(min(room.rect.width, room.rect.depth) >= MIN_SIDE - 1e-6 for room in plan.rooms)
    reached = {0}
    for _ in plan.rooms:
        reached |= {room for door in plan.doors if reached & set(door.rooms) for room in door.rooms}
    assert len(reached) == len(plan.rooms)
    names = [piece.name for piece in pieces]
    assert len(set(names)) == len(names) >= len(plan.rooms)
    for piece in pieces:
        room = plan.rooms[piece.room]
        assert room.colour != piece.colour
        assert room.inside.contains(piece.footprint.x0, piece.footprint.z0)
        assert room.inside.contains(piece.footprint.x1, piece.footprint.z1)
        assert not any(piece.footprint.overlaps(door.zone(0.9, 0.5)) for door in plan.doors)


def test_expert_walks_round_a_corner_with_few_turns() -> None:
    floor = np.array([[0, 0, 0], [0, 0, 8], [8, 0, 8], [8, 0, 0]], np.float32)
    grid = NavGrid.build(floor, np.array([[0, 1, 2], [0, 2, 3]]))
    steps = walk(grid, np.array([[1, 0, 7], [1, 0, 3], [5, 0, 3]]), 0.0, 0.25, 30.0)
    assert steps is not None and math.dist(steps.positions[-1], (5, 0, 3)) < 0.5
    assert sum(action not in (FORWARD, STOP) for action in steps.actions) <= 6
    assert walk(grid, np.array([[1, 0, 7], [1, 0, -3]]), 0.0, 0.25, 30.0) is None


def test_styles_speak_differently_with_few_words() -> None:
    assert len(vocabulary()) < 250
    modern, rustic = (
        set(PHRASES[name].door + PHRASES[name].passing + PHRASES[name].stop) for name in ("modern", "rustic")
    )
    assert not modern & rustic
