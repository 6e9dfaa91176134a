"""Ways on which things have to be counted: what a walker reaches that takes any of them, or counts its steps only."""

import json
from pathlib import Path

import numpy as np
import pytest
from habitat_embedded_sim.houses import ensure
from habitat_embedded_sim.houses.__main__ import main
from habitat_embedded_sim.houses.directions import ORDINALS
from habitat_embedded_sim.houses.plan_file import read_plan

from benchmarks import needs_history

SMALL = {
    "name": "counting",
    "style": "plain",
    "train_scenes": 4,
    "train_episodes_per_scene": 4,
    "val_seen_episodes": 0,
    "val_unseen_scenes": 10,
    "val_unseen_episodes_per_scene": 10,
    "turn_angle": 30.0,
    "forward_step": 0.5,
    "clauses": (1,),
    "num_workers": 2,
}
COUNTING = {"corridor": (26, 30), "must_count": True}  # of vlnr1/task=embedded_counting


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    ensure(root, **SMALL, **COUNTING)
    return root


def ways(root: Path, split: str = "val_unseen") -> list[needs_history.Counted]:
    found = []
    for episode in needs_history.episodes_of(root, "counting", split):
        scene = root / "scene_datasets" / episode["scene_id"]
        found.append(needs_history.counted(episode, *read_plan(scene.with_name(f"{scene.stem}_plan.json"))))
    return found


def share_solved(root: Path, within: float) -> list[float]:
    """Of the unseen episodes by who counts steps, without and with a look."""
    found = ways(root)
    metres = needs_history.best_metres(found, within)
    return list(np.mean([needs_history.step_counters(way, metres, within) for way in found], axis=0))


def test_goals_are_neither_first_nor_last(data_dir: Path) -> None:
    for way in ways(data_dir):
        nearer = sum(place < way.goal - 1.5 for place in way.things)
        farther = sum(place > way.goal + 1.5 for place in way.things)
        assert nearer == ORDINALS.index(way.number) > 0 and farther > 0
    assert "first" in {way.number for way in ways(data_dir, "train")}  # what is learned from may be easier


def test_counting_steps_does_not_replace_counting_things(data_dir: Path, tmp_path: Path) -> None:
    counts, looks = share_solved(data_dir, within=1.0)  # of vlnr1/setup=embedded_counting
    assert counts < 0.4 and looks < 0.8
    assert counts < share_solved(data_dir, within=2.0)[0] < 0.55
    ensure(tmp_path, **SMALL)  # in short corridors, where the second is always about as far away
    counts, looks = share_solved(tmp_path, within=2.0)
    assert counts > 0.7 and looks > 0.85


def test_the_command_line_knows_both_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        "--name counting --train_scenes 1 --train_episodes_per_scene 1 --val_seen_episodes 0 --val_unseen_scenes 0"
    )
    long = "--style plain --forward_step 0.5 --clauses 1 --corridor 26 30 --must_count"
    monkeypatch.setattr("sys.argv", ["houses", "--data_dir", str(tmp_path), *options.split(), *long.split()])
    main()
    manifest = json.loads((tmp_path / "scene_datasets/counting/manifest.json").read_bytes())
    assert manifest["corridor"] == [26.0, 30.0] and manifest["must_count"] is True


def test_sets_made_before_the_options_are_known_again(tmp_path: Path) -> None:
    few = {**SMALL, "train_scenes": 1, "train_episodes_per_scene": 1, "val_unseen_scenes": 0}
    ensure(tmp_path, **few)
    files = list(tmp_path.rglob("manifest.json"))
    for file in files:
        row = json.loads(file.read_bytes())
        file.write_text(json.dumps({key: row[key] for key in row if key not in COUNTING}), encoding="utf-8")
    ensure(tmp_path, **few)
    with pytest.raises(ValueError, match=r"must_count False not True"):
        ensure(tmp_path, **few, **COUNTING)


@pytest.mark.parametrize("corridor", [(26,), (30, 26), (5, 9), (26, 80), ()])
def test_a_corridor_of_which_nothing_can_be_made_is_named(corridor: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"houses: corridor .*shortest and longest"):
        ensure(tmp_path, **SMALL, corridor=corridor)
    assert not list(tmp_path.iterdir())
