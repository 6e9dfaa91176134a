"""The vision warm-up teaches the tiny model to say what it sees, the same way every time."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.lvlm.warmup import QUESTION, rise_and_fall, warm_up
from habitat_vlnr1.prompt import get_template

SPACE = ActionSpace()
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200)}


@dataclass
class Episode:
    descriptions: tuple[str, ...] = ()


@dataclass
class Record:
    frames: list
    step: int = 0
    episode: Episode = field(default_factory=Episode)


class Rows(list):
    """Records, each an episode of its own."""

    def rows(self, size, keep):
        return [[index] for index, record in enumerate(self) if keep(record.episode, record.step)]


@pytest.fixture
def records(tmp_path):
    rows = []
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for i in range(6):
            pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (56, 56, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}{i}.png")
            rows.append(Record([tmp_path / f"{name}{i}.png"], 0, Episode((f"ahead 1 m {name} sofa",))))
    return Rows([*rows, Record([tmp_path / "never read.png"])])


def trained(records, workers=0, **options):
    texts = [text for record in records for text in record.episode.descriptions]
    model, processor = build_tiny(texts, space=SPACE, image_size=56)
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, single_slot=True)
    options = {"steps": 40, "batch_size": 8, "learning_rate": 3e-3, **options}
    return model, encoder, warm_up(model, encoder, records, workers=workers, progress=False, **options)


def test_it_learns_to_tell_colours_apart(records):
    model, encoder, losses = trained(records)
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.1 < losses[0]
    for record in records[:-1:6]:
        query = encoder.query(QUESTION, record.frames)
        with torch.inference_mode():
            out = model.generate(**encoder.prompts([query]), max_new_tokens=12, do_sample=False)
        said = encoder.tokenizer.decode(out[0, len(query.ids) :], skip_special_tokens=True)
        assert said == record.episode.descriptions[0]


def test_the_same_seed_gives_the_same_model(records):
    first, second, other = (trained(records, steps=3, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_reading_in_a_worker_changes_nothing(records):
    assert trained(records, steps=2, workers=1)[2] == trained(records, steps=2)[2]


def test_no_descriptions_is_an_error(records):
    with pytest.raises(ValueError, match=r"vlnr1\.export\.describe=true"):
        trained(Rows(records[-1:]))


def test_learning_rate_rises_and_falls():
    factors = [rise_and_fall(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1 == factors[9] and factors[-1] < 0.001
