"""Visual words teach the tiny model's vision tower what it sees, cell by cell, the same way every time."""

import numpy as np
import pytest
import torch

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.lvlm.fast_vision import core_of, encode_frames, speed_up_vision
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.lvlm.visual_words import WordTargets, in_random_order, teach_words, word_loss
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode, VLNEgo

SPACE = ActionSpace()
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200)}


@pytest.fixture
def records(tmp_path):
    """Twelve frames, each of two colours: one on the left, one on the right."""
    writer = EpisodeWriter(tmp_path, {})
    rng = np.random.default_rng(0)
    for i in range(12):
        left, right = rng.choice(list(COLOURS), 2)
        frame = np.empty((56, 56, 3), np.uint8)
        frame[:, :28], frame[:, 28:] = COLOURS[left], COLOURS[right]
        cells = f"{left} sofa 1; {right} sofa 1; {left} sofa 1; {right} wall"
        writer.write(Episode(str(i), "s", "go", (0,), descriptions=(f"things\n{cells}",)), [encode_jpeg(frame, 95)])
    writer.close()
    return VLNEgo(tmp_path).records(make_memory("current"), 6)


def made(records, image_size=56):
    texts = [line for episode in records.episodes for line in episode.descriptions[0].splitlines()]
    model, processor = build_tiny([*texts, "the red sofa"], space=SPACE, image_size=image_size)
    return model, PromptEncoder(processor, get_template("compact"), 6, SPACE, single_slot=True)


def test_each_visual_token_learns_the_words_of_its_cell(records):
    model, encoder = made(records)
    losses = teach_words(model, encoder, records, steps=60, batch_size=8, learning_rate=3e-3, progress=False)
    assert len(losses) == 60 and np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    root = records.sources[0].root
    words = WordTargets(encoder, model.config.get_text_config().vocab_size)
    episode = records.episodes[0]
    left = episode.cells(0)[0].split()[0]
    batch = words.batch([root / episode.frame(0)], [episode.cells(0)])
    with torch.inference_mode():
        features = encode_frames(core_of(model), batch["pixel_values"], batch["image_grid_thw"])
        logits = model.lm_head(features.pooler_output[0][0])
    ids = [encoder.tokenizer.convert_tokens_to_ids(f"Ġ{colour}") for colour in COLOURS]
    assert list(COLOURS)[int(logits[ids].argmax())] == left


def test_a_cell_shares_its_words_equally_and_an_empty_one_counts_nothing(records):
    model, encoder = made(records)
    speed_up_vision(model)
    words = WordTargets(encoder, model.config.get_text_config().vocab_size)
    frame = np.zeros((56, 56, 3), np.uint8)
    shares = words.batch([frame], [["red wall", "", "red wall, blue sofa 1", ""]])["words"][0]
    red = encoder.tokenizer.convert_tokens_to_ids("Ġred")
    assert shares.sum(-1).tolist() == pytest.approx([1, 0, 1, 0])
    assert shares[0, red] == 0.5 and 0 < shares[2, red] < 0.5
    some, none = (words.batch([frame], [["red wall", *[text] * 3]]) for text in ("red wall", ""))
    assert word_loss(model, some).isfinite() and word_loss(model, none).isfinite()


def test_the_same_seed_gives_the_same_model(records):
    def weights(seed):
        model, encoder = made(records)
        teach_words(model, encoder, records, steps=3, batch_size=4, seed=seed, progress=False)
        return model.state_dict()

    first, second, other = (weights(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_every_frame_comes_once_in_a_round():
    batches = list(in_random_order(5, 4, 3, seed=0))
    assert [len(batch) for batch in batches] == [3] * 4
    numbers = [number for batch in batches for number in batch]
    assert sorted(numbers[:5]) == sorted(numbers[5:10]) == list(range(5))


def test_another_number_of_cells_is_an_error(records):
    with pytest.raises(VLNR1Error, match=r"0000.jpg: .* 4 cells, .* 1 visual tokens.*description.cells"):
        teach_words(*made(records, 28), records, steps=1, progress=False)


def test_no_cells_are_an_error(records):
    model, encoder = made(records)
    records.episodes = [Episode("1", "s", "go", (0,), descriptions=("things",))]
    with pytest.raises(VLNR1Error, match=r"no episode has any: .*export again.*warmup\.words=null"):
        teach_words(model, encoder, records, steps=1, progress=False)
