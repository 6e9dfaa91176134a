"""LoRA on LoRA: whatever starts from an adapter has it below, in training, as the reference, and when it is loaded."""

import shutil

import numpy as np
import pytest
import torch
from habitat_baselines.config.default import get_config

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.records import Episode, EpisodeWriter
from habitat_vlnr1.trainers.fitting import check_start, open_records
from habitat_vlnr1.trainers.rft_fit import Recorded, make_trainer
from habitat_vlnr1.trainers.rft_fit import fit as fit_rft
from habitat_vlnr1.trainers.sft_fit import fit, starting_model
from habitat_vlnr1.trainers.walks import encode_jpeg
from habitat_vlnr1.weights import folder_fingerprint
from tests.paths import CONFIGS

SPACE = ActionSpace(0.5, 30)
WORDS = ["Stop at the red sofa.", "Go through the door on your left and stop at the blue bed."]
LORA = "vlnr1.model.lora={r: 2, lora_alpha: 4, target_modules: [q_proj, v_proj]}"
SFT = ["vlnr1.sft.max_steps=2", "vlnr1.sft.save_steps=1", "vlnr1.sft.learning_rate=0.01", "vlnr1.sft.warmup_steps=0"]
RFT = [
    *("vlnr1.rft.max_steps=2", "vlnr1.rft.save_steps=1", "vlnr1.rft.per_device_train_batch_size=4"),
    *("vlnr1.rft.num_generations=4", "vlnr1.rft.eval_strategy=no", "vlnr1.rft.eval_on_start=false"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A source of a few random frames, and a random tiny model."""
    home = tmp_path_factory.mktemp("adapters")
    rng = np.random.default_rng(0)
    for split in ("train", "val_unseen"):
        writer = EpisodeWriter(home / "data/vln_ego/embedded" / split, {})
        for number, length in enumerate([7, 4]):
            actions = (*(1 + (number + i) % 3 for i in range(length)), 0)
            jpegs = [encode_jpeg(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8), 90) for _ in actions]
            writer.write(Episode(f"{number}", "s", WORDS[number], actions), jpegs)
        writer.close()
    model, processor = build_tiny(WORDS, space=SPACE, image_size=56, seed=1)
    memory = {"strategy": "long_short", "budget": 2, "short_window": 1, "short_stride": 1, "long_stride": 6}
    card = checkpoint.ModelCard(space=SPACE, num_actions=6, template="compact", memory=memory, max_pixels=56**2)
    checkpoint.save(home / "base", model, processor, card)
    return home


@pytest.fixture
def config(home, monkeypatch):
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()
    common = ["vlnr1.model.image_size=56", "vlnr1.model.cpu_threads=1", "vlnr1.task.scenes=null"]
    yield lambda name, *overrides: get_config(f"vlnr1_{name}.yaml", [*common, *overrides], CONFIGS)
    torch.set_num_threads(threads)


def run_sft(config, run, *overrides):
    """Train; returns the newest checkpoint's folder."""
    config = config("sft", f"vlnr1.run_dir={run}", *SFT, *overrides)
    records = open_records(config, [("embedded", "train")])
    fit(config, starting_model(config, records), records)
    return checkpoint.newest_checkpoint(f"{run}/checkpoints")


def rft_config(config, run, *overrides):
    return config("rft", f"vlnr1.run_dir={run}", *RFT, *overrides)


def recorded(config):
    return Recorded(open_records(config, [("embedded", "train")]), [2, 9], [1])


def run_rft(config, run, *overrides):
    config = rft_config(config, run, *overrides)
    fit_rft(config, check_start(config), recorded(config))
    return checkpoint.newest_checkpoint(f"{run}/rft/checkpoints")


def weights(path):
    return checkpoint.load(path)[0].state_dict()


def distance(one, other):
    one, other = weights(one), weights(other)
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def sft(home):
    """An adapter of the base that has learned something."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        common = ["vlnr1.model.image_size=56", "vlnr1.model.cpu_threads=1", "vlnr1.task.scenes=null"]
        make = lambda name, *overrides: get_config(f"vlnr1_{name}.yaml", [*common, *overrides], CONFIGS)  # noqa: E731
        path = run_sft(make, "sft", LORA, "vlnr1.model.path=base")
        assert distance(path, "base") > 1e-3
        return path


def test_with_learning_rate_0_a_stage_on_an_adapter_equals_it_exactly(config, sft):
    """SFT and RFT, one on another, from a folder and from a run's folder."""
    second = run_sft(config, "second", LORA, "vlnr1.model.path=sft/checkpoints", "vlnr1.sft.learning_rate=0")
    assert distance(second, sft) == 0
    third = run_rft(config, "third", LORA, f"vlnr1.rft.start={second}", "vlnr1.rft.learning_rate=0")
    fourth = run_rft(config, "fourth", LORA, "vlnr1.rft.start=third/rft/checkpoints", "vlnr1.rft.learning_rate=0")
    assert distance(third, sft) == distance(fourth, sft) == 0
    assert checkpoint.read_card(fourth).info["start"]["path"] == third


def test_what_every_stage_learned_is_in_what_is_loaded(config, sft):
    both = run_sft(config, "both", LORA, f"vlnr1.model.path={sft}")
    assert distance(both, sft) > 1e-3 and distance(both, "base") > 1e-3
    alone = run_sft(config, "alone", LORA, "vlnr1.model.path=base")
    assert distance(alone, sft) == 0  # the same training, so what differs above is the start


def test_a_stopped_run_on_an_adapter_goes_on_from_it_and_from_no_other(config, sft):
    unbroken = weights(run_sft(config, "stopped", LORA, f"vlnr1.model.path={sft}"))
    shutil.rmtree("stopped/checkpoints/checkpoint-2")
    again = weights(run_sft(config, "stopped", LORA, f"vlnr1.model.path={sft}"))
    for name, weight in unbroken.items():
        torch.testing.assert_close(again[name], weight, msg=name)
    shutil.rmtree("stopped/checkpoints/checkpoint-2")
    with pytest.raises(checkpoint.CheckpointError, match=r"was trained from .*choose another vlnr1.run_dir"):
        run_sft(config, "stopped", LORA, "vlnr1.model.path=base")
    with pytest.raises(checkpoint.CheckpointError, match=r"is an adapter and vlnr1.model.lora is null"):
        run_sft(config, "stopped", f"vlnr1.model.path={sft}")


@pytest.mark.parametrize("lora", [[LORA], []], ids=["lora", "full"])
def test_the_reference_is_the_start(config, sft, lora):
    """Before any step the KL is exactly that of the start to itself, and the loss has a gradient."""
    settings = rft_config(config, f"reference_{len(lora)}", *lora, f"vlnr1.rft.start={sft}", "vlnr1.rft.beta=0.5")
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


def test_full_training_on_an_adapter_moves_all_weights(config, sft):
    full = run_rft(config, "full", f"vlnr1.rft.start={sft}", "vlnr1.rft.learning_rate=0.001")
    moved = weights(full)
    assert sum(not torch.equal(moved[name], weight) for name, weight in weights(sft).items()) > len(moved) / 2
    again = run_sft(config, "again", f"vlnr1.model.path={sft}")
    assert distance(again, sft) > 0 and set(folder_fingerprint(again)) == {"model.safetensors"}
