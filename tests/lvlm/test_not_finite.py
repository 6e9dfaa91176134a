"""NaN and infinity are said, with checkpoint and tensor: as a number NaN is the likeliest, and walks as STOP."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.weights import SLICE, CheckpointError, not_finite_on_disk

SPACE = ActionSpace(0.5, 30)
BAD = "model.layers.0.mlp.down_proj.weight"


def poison(folder, name=BAD, value=float("nan"), place=-1):
    """One number of one tensor."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[place] = value
    save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    model, processor = build_tiny(["go and stop"], space=SPACE, seed=3)
    return checkpoint.save(tmp_path / "model", model, processor, checkpoint.ModelCard(space=SPACE, template="compact"))


def ask(path, **options):
    model, processor = checkpoint.load(path)
    encoder = PromptEncoder(processor, get_template("compact"), 3, SPACE)
    frame = np.random.default_rng(0).integers(0, 256, (84, 84, 3), dtype=np.uint8)
    return ActionDecoder(model, encoder, **options), [Prompt("go and stop", [frame]), Prompt("stop", [frame, frame])]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_answer_is_made_of_nan(folder, constrained, temperature, value):
    poison(folder, value=value)
    decoder, prompts = ask(folder, constrained=constrained, temperature=temperature)
    with pytest.raises(CheckpointError) as said:
        decoder.decode(prompts, 2 if constrained or temperature else 1)
    assert f"model.safetensors: tensor {BAD} has NaN or infinite values" in str(said.value)
    assert str(folder) in str(said.value) and "\n" not in str(said.value)


def test_weights_that_went_wrong_in_memory_are_named_too(folder):
    decoder, prompts = ask(folder)
    with torch.no_grad():
        decoder.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"the model loaded from .*model has NaN or infinite values now"):
        decoder.decode(prompts)


def test_free_answers_of_a_whole_model_are_as_before(folder):
    """Noting what is not finite changes nothing."""
    decoder, prompts = ask(folder, constrained=False)
    encoder = decoder.encoder
    batch = encoder.prompts([encoder.query(p.instruction, p.frames, p.keys) for p in prompts], "cpu", single_slot=True)
    plain = decoder.model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=encoder.end_id,
                                   pad_token_id=encoder.pad_id)[:, batch["input_ids"].shape[1] :]  # fmt: skip
    for answer, ids in zip(decoder.decode(prompts), plain.tolist(), strict=True):
        count = min(len(answer.ids), 8)
        assert list(answer.ids[:count]) == ids[:count]


def test_a_file_is_looked_through_in_slices(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    tensors = {
        "a.large": torch.zeros(SLICE // 1000 + 5, 1001, dtype=torch.bfloat16),
        "b.scalar": torch.tensor(1.0),
        "c.count": torch.arange(3),
        "d.half": torch.zeros(2, 2, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert not_finite_on_disk(tmp_path) is None
    for name in ("d.half", "b.scalar", "a.large"):
        poison(tmp_path, name, float("inf"))
        assert not_finite_on_disk(tmp_path).endswith(f"model.safetensors: tensor {name} has NaN or infinite values")
        poison(tmp_path, name, 0.0)
