"""Questions about walks through the generated houses: what is written, and whether the answers are true."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest
from habitat.datasets.eqa.mp3d_eqa_dataset import Matterport3dDatasetV1
from habitat_embedded_sim.houses import ensure
from habitat_embedded_sim.houses.questions import (
    SPLITS,
    Question,
    balanced,
    questions_of,
    spread,
    telling_kinds,
)
from habitat_embedded_sim.houses.questions import ensure as ensure_questions
from habitat_embedded_sim.houses.sights import SIGHT, House, Thing, Walked
from omegaconf import OmegaConf

SMALL = {
    "style": "plain",
    "train_scenes": 3,
    "train_episodes_per_scene": 3,
    "val_seen_episodes": 2,
    "val_unseen_scenes": 1,
    "val_unseen_episodes_per_scene": 2,
    "forward_step": 0.5,
    "num_workers": 1,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    ensure(root, **SMALL)
    ensure_questions(root)
    return root


def read(root, split):
    return json.loads(gzip.decompress((root / f"datasets/eqa/embedded/{split}/{split}.json.gz").read_bytes()))


def test_habitat_reads_them_as_mp3d_eqa(data_dir):
    for split in SPLITS:
        config = OmegaConf.create(
            {
                "data_path": str(data_dir / "datasets/eqa/embedded/{split}/{split}.json.gz"),
                "scenes_dir": str(data_dir / "scene_datasets"),
                "split": split,
                "content_scenes": ["*"],
            }
        )
        dataset = Matterport3dDatasetV1(config)
        assert dataset.episodes
        for episode in dataset.episodes:
            question = episode.question
            assert dataset.answer_vocab.idx2word(question.answer_token) == question.answer_text
            assert len(episode.shortest_paths[0]) > 1


def test_the_named_things_stand_where_the_answer_says(data_dir):
    for split in SPLITS:
        for episode in read(data_dir, split)["episodes"]:
            house = House.read(data_dir / "scene_datasets" / episode["scene_id"])
            asked, text = episode["question"], episode["question"]["question_text"]
            if asked["question_type"] in ("colour", "room"):
                kind = text.removesuffix("?").split()[-1]
                own = [thing for thing in house.things if thing.kind == kind]
                colours, rooms = [t.colour for t in own], [f"{house.walls[t.room]} room" for t in own]
                true = colours if asked["question_type"] == "colour" else rooms
                assert asked["answer_text"] in true
            elif asked["question_type"] == "floor":
                rooms = {wall: house.floors[room] for room, wall in house.walls.items()}
                assert rooms[text.split()[-2]] == asked["answer_text"]


def test_the_same_arguments_give_the_same_file_and_others_are_refused(data_dir, tmp_path):
    ensure(tmp_path, **SMALL)
    ensure_questions(tmp_path)
    assert read(tmp_path, "train") == read(data_dir, "train")
    before = (tmp_path / "datasets/eqa/embedded/manifest.json").stat().st_mtime_ns
    ensure_questions(tmp_path)
    assert (tmp_path / "datasets/eqa/embedded/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds other questions"):
        ensure_questions(tmp_path, per_walk=3)
    with pytest.raises(ValueError, match="make the houses first"):
        ensure_questions(tmp_path, name="nowhere")


def frame(**shares):
    """A frame in which these ids have these shares of the pixels, from the left."""
    pixels = np.zeros(SIGHT.width * SIGHT.height, dtype=int)
    start = 0
    for name, share in shares.items():
        count = round(share * len(pixels))
        pixels[start : start + count] = int(name[1:])
        start += count
    return pixels.reshape(SIGHT.width, SIGHT.height).T


HOUSE = House(
    [Thing(1, "sofa", "red", 0), Thing(2, "bed", "blue", 1), Thing(3, "sofa", "green", 1)],
    walls={0: "white", 1: "pink"},
    floors={0: "wood", 1: "tile"},
    wall_ids={0: 10, 1: 11},
    floor_ids={0: 20, 1: 21},
)


def asked(*frames):
    found = questions_of(HOUSE, Walked(frames), {"bed": "bedroom"})
    return {question.text: question.answers[0] for question in found}


def test_what_was_seen_is_asked_for():
    found = asked(frame(_10=0.4, _1=0.1), frame(_11=0.4, _2=0.1))
    assert found["What colour is the sofa?"] == "red" and found["In which room is the bed?"] == "pink room"
    assert found["What is the blue thing?"] == "bed" and found["What kind of room is the pink room?"] == "bedroom"
    assert found["What colour is the thing to sit on?"] == "red"
    assert found["How many pieces of furniture did you see?"] == "2"
    assert "What is the floor of the white room?" not in found


def test_a_second_thing_in_sight_makes_a_name_ambiguous():
    found = asked(frame(_10=0.4, _1=0.1), frame(_11=0.4, _3=0.01))
    assert "What colour is the sofa?" not in found and "What colour is the thing to sit on?" not in found
    assert "How many pieces of furniture did you see?" not in found  # a glimpse might count or not
    assert found["What is the red thing?"] == "sofa"


def test_sides_are_those_of_the_last_frame():
    assert asked(frame(_1=0.2))["On which side is the sofa now?"] == "left"
    assert asked(frame(_10=0.4, _1=0.2))["On which side is the sofa now?"] == "ahead"
    assert "On which side is the sofa now?" not in asked(frame(_1=0.2), frame(_10=0.4))


def test_no_answer_is_much_more_frequent_than_the_others():
    rng = np.random.default_rng(0)
    answers = ["red"] * 300 + ["blue"] * 100 + ["green"] * 80
    kept = balanced(rng, [(i, Question("c", "x", "What?", (answer,))) for i, answer in enumerate(answers)])
    counts = Counter(question.answers[0] for _, question in kept)
    assert counts["red"] < 2.1 * counts["green"] and counts["green"] == 80
    few = spread(rng, [(i // 10, question) for i, (_, question) in enumerate(kept)], 4)
    assert max(Counter(walk for walk, _ in few).values()) == 4


def test_kinds_that_tell_a_room():
    assert telling_kinds("plain") == {"fridge": "kitchen", "bed": "bedroom", "bathtub": "bathroom"}
