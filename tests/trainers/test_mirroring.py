"""Stage 1 in the mirror: frames, turns and words change sides together, and nothing else does."""

import numpy as np
import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.config import records_of
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.lvlm.frames import FrameCutter, Mirrored, read_frame
from habitat_vlnr1.lvlm.inputs import PromptEncoder, SFTCollator
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode, VLNEgo
from habitat_vlnr1.register import register
from habitat_vlnr1.trainers.mirroring import mirrored_words
from habitat_vlnr1.trainers.mixture import mixed
from tests.paths import CONFIGS

WORDS = "Turn left and stop at the table."


def picture(seed: int) -> bytes:
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8), 90)


@pytest.fixture
def ego(tmp_path):
    writer = EpisodeWriter(tmp_path / "ego", {"split": "train", "protocol": {"turn_angle": 30}})
    writer.write(Episode("1", "house", WORDS, (2, 1, 3, 0)), [picture(step) for step in range(4)])
    writer.close()
    return VLNEgo(tmp_path / "ego")


def mixture(ego, mirror):
    register()
    config = get_config("vlnr1_sft.yaml", [f"vlnr1.sft.mirror={mirror}", "vlnr1/memory=first"], CONFIGS)
    return mixed(config, records_of(config, [ego]), [])


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Turn left, then RIGHT. Left of it, leftmost.", "Turn right, then LEFT. Right of it, leftmost."),
        ("A bright table.", "A bright table."),
    ],
)
def test_words_change_sides(text, mirrored):
    assert mirrored_words(text) == mirrored
    assert mirrored_words(mirrored) == text


def test_each_record_stands_there_twice(ego):
    plain, both = mixture(ego, "false"), mixture(ego, "true")
    assert len(both) == 2 * len(plain) == 8
    assert sorted(number for row in both.rows(0)["index"] for number in row) == list(range(8))
    for number in range(4):
        record, mirrored = both[number], both[number + 4]
        assert mirrored.instruction == "Turn right and stop at the table."
        swapped = {Action.LEFT: Action.RIGHT, Action.RIGHT: Action.LEFT}
        assert mirrored.answer == tuple(swapped.get(action, action) for action in record.answer)
        for file, frame in zip(record.frames, mirrored.frames, strict=True):
            assert (read_frame(frame) == read_frame(file)[:, ::-1]).all()
            assert (read_frame(frame) != read_frame(file)).any()


def test_a_batch_holds_both_sides(ego):
    """The cache of cut frames does not take one for the other."""
    both = mixture(ego, "true")
    space = ActionSpace(turn_angle=30)
    _, processor = build_tiny([WORDS, mirrored_words(WORDS)], space=space, image_size=56)
    encoder = PromptEncoder(processor, get_template("compact"), 6, space, single_slot=True)
    collate = SFTCollator(encoder, both.__getitem__)
    for _ in range(2):
        batch = collate([{"index": [0]}, {"index": [4]}])
        ours, other = batch["pixel_values"].chunk(2)
        assert not ours.equal(other)
        alone = FrameCutter(processor.image_processor).cut(read_frame(Mirrored(both[0].frames[0])))
        assert other.equal(encoder.cutter.pixel_values([alone], single_slot=True))
