"""What a person looks at: the card and the picture of a few records."""

from io import BytesIO

import numpy as np
import pytest
import yaml
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.interchange.card import card, sheet, write_sheet
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import Episode, VLNEgo

META = {
    "split": "train",
    "expert": "ground_truth",
    "protocol": {"name": "r2r", "forward_step": 0.25, "turn_angle": 15},
}


def colour(step: int) -> tuple[int, int, int]:
    return 60 * (step % 5), 60 * (step // 5 % 5), 200


@pytest.fixture
def ego(tmp_path):
    writer = EpisodeWriter(tmp_path / "ego", META)
    for name, scene, actions in (("1", "a", [1] * 20 + [2, 0]), ("2", "b", [3, 0])):
        frames = []
        for step in range(len(actions)):
            buffer = BytesIO()
            Image.new("RGB", (64, 48), colour(step)).save(buffer, "JPEG", quality=95)
            frames.append(buffer.getvalue())
        writer.write(Episode(name, scene, f"Walk {name} to the end.", tuple(actions)), frames)
    writer.close()
    (tmp_path / "ego/summary.json").write_text('{"skipped": {"8": "no stop: 9 steps"}, "seeds": {"habitat": 3}}')
    return VLNEgo(tmp_path / "ego")


@pytest.mark.parametrize(
    ("form", "path"), [("vln_ego", None), ("sharegpt", "records/*.json"), ("parquet", "data/train-*.parquet")]
)
def test_the_card_counts_and_says_where_it_comes_from(ego, form, path):
    text = card(ego, "mine", form, {"memory": {"strategy": "uniform", "budget": 16}})
    _, front, body = text.split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["pretty_name"], front["size_categories"]) == ("mine", ["n<1K"])
    files = front["configs"][0]["data_files"] if path else None
    assert files == ([{"split": "train", "path": path}] if path else None)
    for row in (
        "| episodes | 2 in 2 scenes |",
        "| records (steps) | 24 |",
        "| skipped episodes | 1 × no stop |",
        "| A. Move forward 25 cm | 20 | 83.3% | █████████████████████████████████ |",
        "| B. Turn left 15 degrees | 1 | 4.2% | ██ |",
        "| turn_angle | 15 |",
        "| expert | ground_truth |",
        "| seeds | habitat 3 |",
        "| memory | strategy uniform, budget 16 |",
    ):
        assert row in body
    assert "Matterport3D" in body.split("## Licence")[1]


def test_the_sheet_shows_what_the_memory_chose(ego):
    record = ego.records(make_memory("uniform", budget=3), 2)[20]
    assert record.history == (0, 9, 19)
    pixels = np.asarray(sheet([record], ActionSpace())).reshape(-1, 3).astype(int)
    shown = [step for step in range(22) if (np.abs(pixels - colour(step)).max(1) < 6).sum() > 2000]
    assert shown == [0, 9, 19, 20]


def test_the_picture_has_first_and_last_record(ego, tmp_path):
    records = ego.records(make_memory("long_short"), 6)
    picture = write_sheet(records, ActionSpace(), tmp_path, count=2)
    with Image.open(picture) as image:
        expected = sheet([records[0], records[-1]], ActionSpace())
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_a_labelled_set_says_what_is_taught(tmp_path):
    writer = EpisodeWriter(tmp_path / "walked", META | {"dagger": {"round": 2}})
    buffer = BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG")
    writer.write(Episode("1", "a", "Go.", (1, 1, 1), labels={0: (2, 0), 2: (0,)}), [buffer.getvalue()] * 3)
    writer.close()
    text = card(VLNEgo(tmp_path / "walked"), "mine", "vln_ego", {})
    assert "Walks of a model and an expert (DAgger)" in text and "Expert walks" not in text
    done, taught = text.split("## Actions taught")
    assert "| A. Move forward 25 cm | 3 |" in done and "| records (steps) | 2 |" in done
    assert "| B. Turn left 15 degrees | 1 |" in taught and "| D. Stop | 1 |" in taught
    assert "| dagger | round 2 |" in text
