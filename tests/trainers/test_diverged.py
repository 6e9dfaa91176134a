"""A run whose numbers are no longer finite ends at once, saves nothing more, and names the last good checkpoint."""

import math
from types import SimpleNamespace

import pytest
import torch
from habitat_baselines.config.default import get_config
from safetensors.torch import load_file

from habitat_vlnr1.config import prompt_encoder
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.errors import CheckpointError
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.warmup import warm_up
from habitat_vlnr1.policies.habitat_checkpoint import read_pth, write_pth
from habitat_vlnr1.records import Episode
from habitat_vlnr1.trainers import fitting
from habitat_vlnr1.trainers.fitting import StopsWhenDiverged, open_records
from habitat_vlnr1.trainers.il import Episodes, Imitation
from tests.lvlm.test_not_finite import BAD, poison
from tests.paths import CONFIGS
from tests.trainers.small_runs import LORA, furnish, inside, run_rft, run_sft, sft_config


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return furnish(tmp_path_factory.mktemp("diverged"))


@pytest.fixture(autouse=True)
def there(home, monkeypatch):
    with inside(home, monkeypatch):
        yield


@pytest.fixture
def bad_start(home):
    """The model with one NaN, in the file `bad/model.safetensors`."""
    model, processor = checkpoint.load("base")
    folder = checkpoint.save(home / "bad", model, processor, checkpoint.read_card("base"))
    poison(folder)
    return "bad"


@pytest.fixture
def gradient(monkeypatch):
    """Makes one gradient of the second step what is asked for, while the loss stays what it is."""

    def make(value):
        load = fitting.load_for_training

        def loaded(*args):
            model, *rest = load(*args)
            calls = []

            def change(grad):
                calls.append(1)
                return torch.full_like(grad, value) if len(calls) == 2 else grad

            next(p for name, p in model.named_parameters() if "layers.0.mlp.down_proj" in name).register_hook(change)
            return model, *rest

        monkeypatch.setattr("habitat_vlnr1.trainers.sft_fit.load_for_training", loaded)
        monkeypatch.setattr("habitat_vlnr1.trainers.rft_fit.load_for_training", loaded)

    return make


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("run", "start", "folder"),
    [(run_sft, "vlnr1.model.path=base", "checkpoints"), (run_rft, "vlnr1.rft.start=base", "rft/checkpoints")],
)
def test_the_first_bad_gradient_ends_training_and_the_checkpoint_before_stays(gradient, run, start, folder, value):
    name = f"{run.__name__}_{value}"
    folder = f"{name}/{folder}"
    gradient(value)
    with pytest.raises(CheckpointError) as said:
        run(name, start)
    told = str(said.value)
    assert told.startswith("step 2: loss ") and f"gradient norm {value}" in told and "\n" not in told
    assert f"the last good checkpoint is {folder}/checkpoint-1" in told and "NaN or infinite" not in told
    assert checkpoint.newest_checkpoint(folder) == f"{folder}/checkpoint-1"
    assert all(tensor.isfinite().all() for tensor in load_file(f"{folder}/checkpoint-1/model.safetensors").values())


def test_a_bad_start_is_named(bad_start):
    for run, start in ((run_sft, "vlnr1.model.path=bad"), (run_rft, "vlnr1.rft.start=bad")):
        for lora in ([], [LORA]):
            with pytest.raises(CheckpointError, match=rf"bad/model.safetensors: tensor {BAD}.*no checkpoint"):
                run(f"bad_{run.__name__}_{len(lora)}", start, *lora)
    with pytest.raises(CheckpointError, match=rf"bad/model.safetensors: tensor {BAD}.*no checkpoint"):
        run_rft("bad_trl", "vlnr1.rft.start=bad", "vlnr1.rft.rollout=trl")


def test_weights_that_are_not_finite_are_not_saved(home):
    with pytest.raises(CheckpointError, match=r"step 1: weights are not finite.*no checkpoint has been saved"):
        run_sft("far", "vlnr1.model.path=base", "vlnr1.sft.learning_rate=1e39", "vlnr1.sft.max_grad_norm=0")
    assert not list((home / "far").rglob("*.safetensors"))


def test_in_fp16_the_loss_alone_counts():
    """There a gradient may overflow, and the loss scaler leaves the step out."""

    class Trainer(StopsWhenDiverged, type("Plain", (), {"_get_grad_norm": lambda self, model, grad_norm: grad_norm})):
        state, _globalstep_last_logged, model = SimpleNamespace(global_step=3), 3, torch.nn.Linear(1, 1)

    trainer = Trainer()
    trainer.args, trainer._tr_loss = SimpleNamespace(fp16=True, output_dir="nothing"), torch.tensor(1.0)
    assert trainer._get_grad_norm(None, torch.tensor(math.inf)) == math.inf
    trainer._tr_loss = torch.tensor(math.nan)
    with pytest.raises(CheckpointError, match="step 4: loss nan"):
        trainer._get_grad_norm(None, torch.tensor(1.0))
    trainer.args, trainer._tr_loss = SimpleNamespace(fp16=False, output_dir="nothing"), torch.tensor(1.0)
    with pytest.raises(CheckpointError, match="gradient norm inf"):
        trainer._get_grad_norm(None, math.inf)  # DeepSpeed's is a float


def test_a_warm_up_that_diverges_ends(bad_start):
    writer = EpisodeWriter("data/vln_ego/described/train", {})
    frame = (open_records(sft_config("any"), [("embedded", "train")])[0].frames[0]).read_bytes()
    writer.write(Episode("1", "s", "go", (1, 0), descriptions=("a red sofa", "a red bed")), [frame] * 2)
    writer.close()
    config = sft_config("any")
    model, processor = checkpoint.load(bad_start)
    records = open_records(config, [("described", "train")])
    with pytest.raises(CheckpointError, match=r"vision warm-up, step 1: loss nan.*warmup.learning_rate"):
        warm_up(model, prompt_encoder(config, processor), records, steps=2, workers=0, progress=False)


def test_imitation_that_diverges_ends(monkeypatch):
    overrides = ["vlnr1.task.scenes=null", "vlnr1.run_dir=il", "vlnr1.il.batch_size=1", "vlnr1.il.cpu_threads=1",
                 "vlnr1.il.save_steps=1", "vlnr1.net.baseplanes=4", "vlnr1.net.hidden_size=16"]  # fmt: skip
    config = get_config("vlnr1_il.yaml", overrides, CONFIGS)
    records = open_records(sft_config("any"), [("embedded", "train")])
    imitation = Imitation(config, Episodes(records.sources, config))
    logits = imitation.logits
    monkeypatch.setattr(imitation, "logits", lambda batch: logits(batch) * (math.nan if imitation.step == 1 else 1))
    with pytest.raises(CheckpointError, match=r"batch 2: loss nan.* checkpoint is il/checkpoints/ckpt\.1\.pth"):
        imitation.fit()


def test_a_policy_of_nan_is_not_loaded(tmp_path):
    write_pth(tmp_path / "ckpt.1.pth", {"state_dict": {"net.a": torch.ones(2), "net.b": torch.tensor([1, math.nan])}})
    with pytest.raises(CheckpointError, match=r"ckpt\.1\.pth: tensor net\.b has NaN"):
        read_pth(tmp_path / "ckpt.1.pth")
