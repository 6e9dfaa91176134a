"""Which checkpoint a training goes on from: the newest that is whole, and only if it is of this training."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.checkpoint import CheckpointError, ModelCard
from habitat_vlnr1.trainers.fitting import last_checkpoint

RUN = {"data": {"embedded/train": "aa"}, "settings": {"learning_rate": 1e-3}}
TWO_EPOCHS = {"max_steps": -1, "num_train_epochs": 2}
CARD = ModelCard(memory={"strategy": "current"}, info={"stage": "sft", "run": RUN})


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        made = tmp_path / f"checkpoint-{step}"
        made.mkdir()
        save_file({"weight": torch.zeros(1000)}, made / "model.safetensors")
        for file in ("optimizer.pt", "scheduler.pt"):
            torch.save({"state": torch.zeros(1000)}, made / file)
        (made / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 6, "epoch": step / 4}))
        (made / "config.json").write_text("{}")
        checkpoint.write_card(made, CARD)
    return tmp_path


def test_the_newest_is_taken(folder):
    newest = str(folder / "checkpoint-4")
    assert checkpoint.newest_checkpoint(folder) == newest
    assert last_checkpoint(folder, TWO_EPOCHS, CARD) == (newest, False)
    assert last_checkpoint(folder, TWO_EPOCHS | {"max_steps": 4}, CARD) == (newest, True)
    assert last_checkpoint(folder / "nowhere", TWO_EPOCHS, CARD) == (None, False)


def test_a_finished_run_goes_on_when_it_shall_be_longer(folder):
    for options, finished in (
        ({"max_steps": -1, "num_train_epochs": 1}, True),
        ({"max_steps": -1, "num_train_epochs": 1.5}, False),
        ({"max_steps": 4, "num_train_epochs": 9}, True),
        ({"max_steps": 5, "num_train_epochs": 1}, False),
    ):
        assert last_checkpoint(folder, options, CARD) == (str(folder / "checkpoint-4"), finished), options


def test_an_evaluation_does_not_take_an_older_one_in_its_place(folder):
    path = folder / "checkpoint-4/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"checkpoint-4: model.safetensors has 1000 of \d+ bytes"):
        checkpoint.newest_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": {"strategy": "uniform"}}, 'memory.strategy: "current" there, "uniform" now'),
        ({"info": CARD.info | {"run": RUN | {"data": {"embedded/train": "bb"}}}}, 'data.embedded/train: "aa" there'),
        ({"info": CARD.info | {"run": RUN | {"settings": {"learning_rate": 1e-4}}}}, "learning_rate: 0.001 there"),
    ],
)
def test_one_of_another_training_is_refused(folder, change, message):
    now = ModelCard(**{"memory": CARD.memory, "info": CARD.info, **change})
    with pytest.raises(CheckpointError, match=f"checkpoint-4 is of another training .*{message}.*vlnr1.run_dir"):
        last_checkpoint(folder, TWO_EPOCHS, now)


def test_an_older_versions_card_is_compared_as_far_as_it_goes(folder, capsys):
    old = ModelCard(memory=CARD.memory, info={"stage": "sft"})
    checkpoint.write_card(folder / "checkpoint-4", old)
    assert last_checkpoint(folder, TWO_EPOCHS, CARD) == (str(folder / "checkpoint-4"), False)
    assert "says little of what it was trained with" in capsys.readouterr().out
    assert last_checkpoint(folder, TWO_EPOCHS, replace(CARD, jpeg_quality=92))[0] == str(folder / "checkpoint-4")
    checkpoint.write_card(folder / "checkpoint-4", replace(CARD, jpeg_quality=75))
    with pytest.raises(CheckpointError, match="jpeg_quality: 75 there, 92 now"):
        last_checkpoint(folder, TWO_EPOCHS, replace(CARD, jpeg_quality=92))
