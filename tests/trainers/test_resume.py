"""Which checkpoint a training goes on from: the newest that is whole, and only if it is of this training."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.checkpoint import CheckpointError, ModelCard
from habitat_vlnr1.trainers.fitting import last_checkpoint

RUN = {"data": {"embedded/train": "aa"}, "settings": {"learning_rate": 1e-3}}
CARD = ModelCard(memory={"strategy": "current"}, info={"stage": "sft", "run": RUN})


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        made = tmp_path / f"checkpoint-{step}"
        made.mkdir()
        save_file({"weight": torch.zeros(1000)}, made / "model.safetensors")
        torch.save({"state": torch.zeros(1000)}, made / "optimizer.pt")
        (made / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        checkpoint.write_card(made, CARD)
    return tmp_path


def test_the_newest_is_taken(folder):
    assert last_checkpoint(folder, CARD) == str(folder / "checkpoint-4") == checkpoint.newest_checkpoint(folder)
    assert last_checkpoint(folder / "nowhere", CARD) is None


@pytest.mark.parametrize(
    ("file", "size", "reason"),
    [
        ("model.safetensors", 1000, r"model.safetensors is cut or damaged \(1000 of 40\d\d bytes\)"),
        ("model.safetensors", 0, r"model.safetensors is cut or damaged \(0 bytes, no header\)"),
        ("optimizer.pt", 1000, r"optimizer.pt is cut or damaged \(1000 bytes\)"),
        ("optimizer.pt", None, "there is no optimizer.pt"),
        ("trainer_state.json", 0, "trainer_state.json is not JSON"),
        ("trainer_state.json", None, "there is no trainer_state.json"),
        ("vlnr1.json", 0, "vlnr1.json: "),
    ],
)
def test_a_damaged_one_is_passed_over_with_a_line(folder, capsys, file, size, reason):
    for step in (4, 2):
        path = folder / f"checkpoint-{step}" / file
        if size is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:size])
        if step == 4:
            assert last_checkpoint(folder, CARD) == str(folder / "checkpoint-2")
            said = capsys.readouterr().out
            assert said.startswith(f"{folder}/checkpoint-4 is not whole and is passed over: ")
            assert re.search(reason, said)
    with pytest.raises(CheckpointError, match="no checkpoint is whole: restore one, or delete all to start over"):
        last_checkpoint(folder, CARD)


def test_an_evaluation_does_not_take_an_older_one_in_its_place(folder):
    path = folder / "checkpoint-4/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"checkpoint-4: model.safetensors is cut .*delete the folder to take"):
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
        last_checkpoint(folder, now)


def test_an_older_versions_card_is_compared_as_far_as_it_goes(folder, capsys):
    old = ModelCard(memory=CARD.memory, info={"stage": "sft"})
    checkpoint.write_card(folder / "checkpoint-4", old)
    assert last_checkpoint(folder, CARD) == str(folder / "checkpoint-4")
    assert "says little of what it was trained with" in capsys.readouterr().out
