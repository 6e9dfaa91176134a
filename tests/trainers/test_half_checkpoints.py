"""A checkpoint that is cut or incomplete is never gone on from: the one before is, or one line says what to delete."""

import os
import shutil

import pytest
import torch
from habitat_baselines.config.default import get_config

from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.trainers.fitting import check_start, open_records
from habitat_vlnr1.trainers.il import Episodes, Imitation
from habitat_vlnr1.weights import CheckpointError
from tests.paths import CONFIGS
from tests.trainers.small_runs import LORA, furnish, inside, rft_config, run_sft, sft_config

GO_ON = ("vlnr1.model.path=base", "vlnr1.sft.max_steps=3", "vlnr1.sft.save_total_limit=3")


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def remove(file):
    file.unlink()


DAMAGE = [
    (remove, "trainer_state.json"),
    (empty, "trainer_state.json"),
    (cut, "trainer_state.json"),
    (cut, "optimizer.pt"),
    (remove, "optimizer.pt"),
    (cut, "scheduler.pt"),
    (empty, "rng_state.pth"),
    (cut, "model.safetensors"),
    (remove, "model.safetensors"),
    (empty, "vlnr1.json"),
    (remove, "config.json"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run that was stopped after two of three steps, `run`, and the one that was not, `unbroken`."""
    home = furnish(tmp_path_factory.mktemp("half"))
    with pytest.MonkeyPatch.context() as patch, inside(home, patch):
        run_sft("unbroken", *GO_ON)
        shutil.copytree("unbroken", "run")
        shutil.rmtree("run/checkpoints/checkpoint-3")
    return home


@pytest.fixture
def run(home, monkeypatch, tmp_path_factory):
    """A copy of the run; its checkpoints' folder."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(home / "run", folder / "run")
    shutil.copytree(home / "base", folder / "base")
    (folder / "data").symlink_to(home / "data")
    with inside(folder, monkeypatch):
        yield folder / "run/checkpoints"


@pytest.mark.parametrize(("how", "file"), DAMAGE, ids=[f"{how.__name__} {file}" for how, file in DAMAGE])
def test_the_checkpoint_before_is_gone_on_from(home, run, how, file, capsys):
    how(run / "checkpoint-2" / file)
    last = run_sft("run", *GO_ON)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "broken-checkpoint-2" in line]
    assert file.removeprefix("model.") in line and "Going on from run/checkpoints/checkpoint-1" in line
    assert last == "run/checkpoints/checkpoint-3" and (run / "broken-checkpoint-2").is_dir()
    wanted = checkpoint.load(home / "unbroken/checkpoints/checkpoint-3")[0].state_dict()
    got = checkpoint.load(last)[0].state_dict()
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, msg=name)


def test_without_a_whole_one_a_line_says_what_to_delete(run):
    for number in (1, 2):
        cut(run / f"checkpoint-{number}/optimizer.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint-2: optimizer.pt is cut.*delete them to start over") as said:
        run_sft("run", *GO_ON)
    assert "\n" not in str(said.value) and (run / "checkpoint-2").is_dir()


def test_a_finished_run_needs_its_weights_alone(run, capsys):
    (run / "checkpoint-2/optimizer.pt").unlink()
    assert run_sft("run", "vlnr1.model.path=base") == "run/checkpoints/checkpoint-2"
    assert "SFT is finished" in capsys.readouterr().out


def test_half_an_adapter_is_passed_over_too(run, capsys):
    run_sft("adapter", LORA, "vlnr1.model.path=base")
    cut(run.parents[1] / "adapter/checkpoints/checkpoint-2/adapter_model.safetensors")
    assert run_sft("adapter", LORA, *GO_ON) == "adapter/checkpoints/checkpoint-3"
    assert "adapter_model.safetensors has" in capsys.readouterr().out


@pytest.mark.parametrize("how", [cut, empty, remove])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_what_is_evaluated_or_started_from_is_whole_or_named(run, how, file):
    how(run / "checkpoint-2" / file)
    if not (how is remove and file == "tokenizer.json"):  # Transformers makes another then, which is none of ours
        with pytest.raises(CheckpointError, match=r"checkpoint-2") as said:
            checkpoint.load("run/checkpoints/checkpoint-2")
        assert "\n" not in str(said.value)
    if file == "model.safetensors":
        with pytest.raises(CheckpointError, match=r"checkpoint-2: (model|no \*)\.safetensors"):
            check_start(rft_config("rft", "vlnr1.rft.start=run/checkpoints"))


def test_imitation_goes_on_from_the_one_before(run, capsys):
    overrides = ["vlnr1.task.scenes=null", "vlnr1.run_dir=il", "vlnr1.il.batch_size=1", "vlnr1.il.cpu_threads=1",
                 "vlnr1.il.epochs=1", "vlnr1.il.save_steps=1", "vlnr1.net.baseplanes=4",
                 "vlnr1.net.hidden_size=16"]  # fmt: skip
    config = get_config("vlnr1_il.yaml", overrides, CONFIGS)
    records = open_records(sft_config("any"), [("embedded", "train")])
    Imitation(config, Episodes(records.sources, config)).fit()
    folder = run.parents[1] / "il/checkpoints"
    cut(folder / "ckpt.2.pth")
    Imitation(config, Episodes(records.sources, config)).fit()
    assert "ckpt.2.pth: not a Habitat-Baselines checkpoint" in capsys.readouterr().out
    assert sorted(file.name for file in folder.iterdir()) == ["broken-ckpt.2.pth", "ckpt.1.pth", "ckpt.2.pth"]
    for file in folder.glob("ckpt.*"):
        cut(file)
    (folder / "ckpt.1.pth").unlink()
    with pytest.raises(CheckpointError, match="delete it to start over"):
        Imitation(config, Episodes(records.sources, config)).fit()
