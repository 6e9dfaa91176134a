"""LoRA on LoRA: whatever starts from an adapter has it below, in training, as the reference, and when it is loaded."""

import shutil

import pytest
import torch
from transformers import AutoProcessor

from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.trainers.fitting import check_start
from habitat_vlnr1.trainers.rft_fit import make_trainer
from habitat_vlnr1.weights import folder_fingerprint
from tests.trainers.small_runs import LORA, furnish, inside, recorded, rft_config, run_rft, run_sft
from tests.trainers.test_convert import convert


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return furnish(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(autouse=True)
def there(home, monkeypatch):
    with inside(home, monkeypatch):
        yield


@pytest.fixture(scope="module")
def sft(home):
    """An adapter of the base that has learned something."""
    with pytest.MonkeyPatch.context() as patch, inside(home, patch):
        path = run_sft("sft", LORA, "vlnr1.model.path=base")
        assert distance(path, "base") > 1e-3
        return path


def weights(path):
    return checkpoint.load(path)[0].state_dict()


def distance(one, other):
    one, other = weights(one), weights(other)
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_with_learning_rate_0_a_stage_on_an_adapter_equals_it_exactly(sft):
    """SFT and RFT, one on another, from a folder and from a run's folder."""
    second = run_sft("second", LORA, "vlnr1.model.path=sft/checkpoints", "vlnr1.sft.learning_rate=0")
    assert distance(second, sft) == 0
    third = run_rft("third", LORA, f"vlnr1.rft.start={second}", "vlnr1.rft.learning_rate=0")
    fourth = run_rft("fourth", LORA, "vlnr1.rft.start=third/rft/checkpoints", "vlnr1.rft.learning_rate=0")
    assert distance(third, sft) == distance(fourth, sft) == 0
    assert checkpoint.read_card(fourth).info["start"]["path"] == third


def test_what_every_stage_learned_is_in_what_is_loaded(sft):
    both = run_sft("both", LORA, f"vlnr1.model.path={sft}")
    assert distance(both, sft) > 1e-3 and distance(both, "base") > 1e-3
    alone = run_sft("alone", LORA, "vlnr1.model.path=base")
    assert distance(alone, sft) == 0  # the same training, so what differs above is the start


def test_a_stopped_run_on_an_adapter_goes_on_from_it_and_from_no_other(sft):
    unbroken = weights(run_sft("stopped", LORA, f"vlnr1.model.path={sft}"))
    shutil.rmtree("stopped/checkpoints/checkpoint-2")
    again = weights(run_sft("stopped", LORA, f"vlnr1.model.path={sft}"))
    for name, weight in unbroken.items():
        torch.testing.assert_close(again[name], weight, msg=name)
    shutil.rmtree("stopped/checkpoints/checkpoint-2")
    with pytest.raises(checkpoint.CheckpointError, match=r"another training .*run.start.*another vlnr1.run_dir"):
        run_sft("stopped", LORA, "vlnr1.model.path=base")
    with pytest.raises(checkpoint.CheckpointError, match=r"is of another training .*run.lora.* there, null now"):
        run_sft("stopped", f"vlnr1.model.path={sft}")


@pytest.mark.parametrize("lora", [[LORA], []], ids=["lora", "full"])
def test_the_reference_is_the_start(sft, lora):
    """Before any step the KL is exactly that of the start to itself, and the loss has a gradient."""
    settings = rft_config(f"reference_{len(lora)}", *lora, f"vlnr1.rft.start={sft}", "vlnr1.rft.beta=0.5")
    trainer = make_trainer(settings, check_start(settings), None, recorded(settings))
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([dict(trainer.train_dataset[0]) for _ in range(4)])
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(trainer.model, inputs).backward()
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(0, abs=1e-6)
    assert any(parameter.grad is not None for parameter in trainer.model.parameters())
    if not lora:
        for name, weight in weights(sft).items():
            assert torch.equal(trainer.ref_model.state_dict()[name], weight), name


def test_an_adapter_is_merged_into_a_whole_checkpoint(sft, tmp_path):
    """What any other program loads; evaluation and training take it too."""
    for _ in range(2):  # the second time it is there already
        convert("merged", "sft/checkpoints", output=tmp_path / "whole")
    assert set(folder_fingerprint(tmp_path / "whole")) == {"model.safetensors"}
    assert distance(tmp_path / "whole", sft) == 0
    card, adapters = checkpoint.read_card(tmp_path / "whole"), checkpoint.read_card(sft)
    assert card.info["merged"]["weights"] == folder_fingerprint(sft)
    assert {**card.to_json(), "info": None} == {**adapters.to_json(), "info": None}
    AutoProcessor.from_pretrained(tmp_path / "whole")
    run_rft("on_merged", f"vlnr1.rft.start={tmp_path / 'whole'}", "vlnr1.rft.max_steps=1")
    with pytest.raises(checkpoint.CheckpointError, match="base is no adapter of ours"):
        convert("merged", "base")
    with pytest.raises(checkpoint.CheckpointError, match="whole was made from something else"):
        shutil.copytree(sft, tmp_path / "other")
        (tmp_path / "other/adapter_model.safetensors").write_bytes(b"x" * 9)
        convert("merged", tmp_path / "other", output=tmp_path / "whole")


def test_full_training_on_an_adapter_moves_all_weights(sft):
    full = run_rft("full", f"vlnr1.rft.start={sft}", "vlnr1.rft.learning_rate=0.001")
    moved = weights(full)
    assert sum(not torch.equal(moved[name], weight) for name, weight in weights(sft).items()) > len(moved) / 2
    again = run_sft("again", f"vlnr1.model.path={sft}")
    assert distance(again, sft) > 0 and set(folder_fingerprint(again)) == {"model.safetensors"}
