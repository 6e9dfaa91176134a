"""Habitat's own EQA task on questions about made houses, walked and answered by a random tiny model."""

import gzip
import json

import pytest
from habitat_baselines.config.default import get_config
from habitat_embedded_sim.houses import ensure

from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.trainers.mp3d_eqa import MP3DEQATrainer
from tests.embedded_sim.test_questions import SMALL as HOUSES
from tests.paths import CONFIGS
from tests.trainers.small_runs import furnish, inside


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = furnish(tmp_path_factory.mktemp("mp3d_eqa"))
    ensure(home / "data", **HOUSES)
    return home


def settings(*overrides):
    small = ["vlnr1.model.image_size=56", "vlnr1.memory.budget=2", "vlnr1.checkpoint=base", "vlnr1.run_dir=run"]
    return get_config("vlnr1_mp3d_eqa.yaml", [*small, "vlnr1.eqa.rows=[current]", *overrides], CONFIGS)


def test_a_path_is_walked_and_habitat_marks_the_answer(home, monkeypatch, capsys):
    with inside(home, monkeypatch):
        MP3DEQATrainer(settings("vlnr1.task.scenes.per_walk=1")).train()
        file = home / "run/results/embedded_eqa/val_unseen/current.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert lines and f"| current | {len(lines)} | 0.000 |" in capsys.readouterr().out
        # What Habitat takes for right is right: the same walks, answered by somebody who knows.
        data = home / "data/datasets/eqa/embedded/val_unseen/val_unseen.json.gz"
        episodes = json.loads(gzip.decompress(data.read_bytes()))["episodes"]
        truth = {episode["episode_id"]: episode["question"]["answer_text"] for episode in episodes}
        asked = {line["question"]: truth[line["episode_id"]] for line in lines}
        file.write_text("\n".join(map(json.dumps, lines[1:])) + "\n")  # was interrupted
        monkeypatch.setattr(
            "habitat_vlnr1.lvlm.free_text.TextDecoder.answer", lambda self, questions, frames: [asked[questions[0]]]
        )
        MP3DEQATrainer(settings("vlnr1.task.scenes.per_walk=1")).train()
        again = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(again) == len(lines) and again[-1]["answer_accuracy"] == 1.0


def test_what_is_not_there_is_named(home, monkeypatch):
    with inside(home, monkeypatch):
        with pytest.raises(RecordError, match=r"no row 'majority'"):
            MP3DEQATrainer(settings("vlnr1.eqa.rows=[majority]")).eval()
        with pytest.raises(RecordError, match=r"val\.json\.gz: not there"):
            MP3DEQATrainer(settings("vlnr1/task=mp3d_eqa")).eval()
