"""benchmarks/gpu.py: its FLOPs are PyTorch's own count, and a measure without memory stops no other."""

import argparse
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, narrow, true_shape
from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.prompt import get_template

LITTLE = (
    "qwen2_vl",
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    },
    {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 4, "hidden_size": 64},
)


@pytest.fixture(scope="module")
def asked():
    """A model, its inputs for a prompt of three frames, and the prompt's query."""
    model, processor = build_tiny(["go to the red table"], space=ActionSpace())
    model.set_attn_implementation("eager")  # whose products are all counted
    encoder = PromptEncoder(processor, get_template("vln_ego"), 6, ActionSpace())
    query = encoder.query("go to the red table", list(np.zeros((3, 84, 84, 3), np.uint8)))
    return model, encoder.prompts([query]), query


def attention(model, tokens):
    """The half of a prompt's attention that causality makes needless and eager attention does all the same."""
    text = model.config.get_text_config()
    return 2 * text.hidden_size * text.num_hidden_layers * tokens**2


def test_flops_are_those_that_pytorch_counts(asked):
    model, batch, query = asked
    tokens = len(query.ids)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**batch)
    ours = gpu.flops(model, tokens, 3, gpu.patches_of(query), tokens, group=(1, 0))
    assert ours + attention(model, tokens) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_flops_of_a_full_step_are_three_times_those_of_the_forward_pass(asked):
    model, batch, query = asked
    model.requires_grad_(True)
    tokens = len(query.ids)
    counter = FlopCounterMode(display=False)
    with counter:
        model(**batch).logits.sum().backward()
    ours = gpu.flops(model, tokens, 3, gpu.patches_of(query), tokens, group=(1, 0), factors=(3, 3))
    assert ours + 3 * attention(model, tokens) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_an_answer_behind_known_tokens_counts_as_the_rest_of_the_whole(asked):
    model = asked[0]
    whole = gpu.flops(model, 130, 0, 36, 0, group=(1, 0))
    known = gpu.flops(model, 70, 0, 36, 0, group=(1, 0))
    assert gpu.flops(model, 100, 0, 36, 0, group=(1, 30), known=70) == pytest.approx(whole - known)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("Unheard Of", None)],
)
def test_a_peak_goes_by_the_device_s_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert gpu.peak_of(torch.device("cuda"), None) == (peak and peak * 1e12)
    assert gpu.peak_of(torch.device("cuda"), 50) == 50e12


def test_what_memory_does_not_suffice_for_is_named_and_the_rest_goes_on(monkeypatch, tmp_path):
    def full(training):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(true_shape.MODELS, "qwen2_vl_2b", LITTLE)
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 3 * gpu.GIB)
    monkeypatch.setattr(true_shape.Training, "group", full)
    file = tmp_path / "gpu.json"
    words = "--device cpu --models qwen2_vl_2b --frame 84 --batches 2 --queries 1 --steps 1 --generations 2 --json"
    gpu.main([*words.split(), str(file)])
    rows = {row["what"]: row for row in json.loads(file.read_text())["rows"]}
    failed = [what for what, row in rows.items() if row["seconds"] is None]
    assert failed == ["GRPO step, LoRA", "GRPO step, full"]
    assert all("ran out of memory" in rows[what]["note"] for what in failed)
    assert rows["query, drafts"]["ratio"] > 0
    assert [what for what in rows if what.startswith("SFT")] == ["SFT step, LoRA", "SFT step, full"]


def test_what_is_planned_above_the_free_memory_is_not_tried(monkeypatch):
    monkeypatch.setitem(true_shape.MODELS, "qwen2_vl_2b", LITTLE)
    monkeypatch.setattr(gpu, "free_bytes", lambda device: 4 * gpu.GIB)
    rows = []
    options = argparse.Namespace(device="cpu", peak_tflops=None, layers=None)
    tried = gpu.Benchmark("qwen2_vl_2b", options, rows).attempt(gpu.Row("m", "x", 1, planned=4.5), pytest.fail)
    assert not tried
    assert "4.5 GiB planned, 4.0 free" in rows[0].note


@pytest.mark.parametrize("at_once", [20, 1 << 24])
def test_products_made_wider_are_those_of_bfloat16(monkeypatch, at_once):
    """Values and gradients agree with stock's within bfloat16's rounding, matrices whole or in parts."""
    monkeypatch.setattr(narrow, "is_slow", lambda: True)
    monkeypatch.setattr(narrow, "WIDE_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 5, 16), (8, 16), (8,), (30, 16), (3, 2, 1, 5, 8), (1, 3, 4, 4), (8, 3, 2, 2))
    parts = [torch.randn(*size, generator=generator).bfloat16() for size in sizes]

    def results():
        leaves = [part.clone().requires_grad_() for part in parts]
        x, weight, bias, tall, heads, picture, kernel = leaves
        made = [
            F.linear(x, weight, bias),
            F.linear(x, tall),
            torch.baddbmm(bias, x, weight.T.expand(2, -1, -1)),
            F.scaled_dot_product_attention(*heads, is_causal=True),
            F.conv2d(picture, kernel, bias),
        ]
        torch.stack([result.square().sum() for result in made]).sum().backward()
        return [*made, *(leaf.grad for leaf in leaves)]

    stock = results()
    with narrow.wide_products():
        wide = results()
    for ours, theirs in zip(wide, stock, strict=True):
        assert ours.dtype == theirs.dtype == torch.bfloat16
        assert torch.allclose(ours.float(), theirs.float(), rtol=0.03, atol=0.03 * theirs.abs().max().item())


class Products(TorchDispatchMode):
    """The types that matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.mm.default:
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_a_slow_cpu_multiplies_in_float32_forwards_and_backwards(monkeypatch):
    x, weight = (torch.ones(3, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))

    def types():
        with Products() as products, narrow.wide_products():
            F.linear(x, weight).sum().backward()
        return products.seen

    monkeypatch.setattr(narrow, "is_slow", lambda: True)
    assert types() == [torch.float32] * 3
    monkeypatch.setattr(narrow, "is_slow", lambda: False)
    assert types() == [torch.bfloat16] * 3
