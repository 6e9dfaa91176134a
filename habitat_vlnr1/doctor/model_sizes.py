"""How large a model is and what its training takes, from its architecture alone: neither weights nor a GPU.

The arithmetic is explained in docs/planning.md.

Examples:
    >>> model = empty_model(architecture("Qwen/Qwen2-VL-2B-Instruct", facts))    # doctest: +SKIP
    >>> Size.of(model).parameters                                                # doctest: +SKIP
    2208985600
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lvlm.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS

ENGINES = ("DDP", "ZeRO-2", "ZeRO-3")
MAX_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Size:
    """Numbers of parameters: all, those of the vision tower, and those that are trained."""

    parameters: int
    vision: int
    trained: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Size:
        def count(module: torch.nn.Module, trained: bool = False) -> int:
            return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)

        vision = next(module for name, module in model.named_modules() if name.split(".")[-1] == "visual")
        return cls(count(model), count(vision), count(model, trained=True))


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Args:
        weights: of the model, with what ZeRO-3 gathers of it.
        reference: weights of GRPO's reference model.
        gradients: with DDP's buckets, or ZeRO's float32 copy at the update.
        optimizer: Adam's two moments and, under ZeRO, float32 master weights.
        host: what DeepSpeed keeps in host memory instead (`offload_optimizer`, `offload_param`).
    """

    weights: float
    reference: float
    gradients: float
    optimizer: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """On the GPU."""
        return self.weights + self.reference + self.gradients + self.optimizer


def architecture(path: str | None, facts: Mapping[str, Any] | None) -> PretrainedConfig | None:
    """The config of a folder or a downloaded hub id; else from `facts`, when they are of this hub id; else None.

    Args:
        facts: what `AutoConfig.for_model` takes, and `hub_id`, the model that it describes.
    """
    if path is None:
        return None
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        facts = dict(facts or {})
        return AutoConfig.for_model(**facts) if facts.pop("hub_id", None) == path else None


def empty_model(config: PretrainedConfig, lora: Mapping[str, Any] | None = None) -> PreTrainedModel:
    """The model without memory for its weights (meta device), with LoRA adapters when asked for."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    return model


def training_memory(
    engine: str,
    size: Size,
    gpus: int,
    weight_bytes: int,
    reference: bool = False,
    rollouts: bool = False,
    offload: Collection[str] = (),
) -> Memory:
    """What weights, gradients and optimizer take on each GPU.

    Args:
        engine: one of `ENGINES`.
        weight_bytes: 2 (bfloat16) or 4 (float32), of `vlnr1.model.dtype`. DeepSpeed makes it 2.
        reference: whether a second, frozen copy of the model is held.
        rollouts: whether answers are generated in between; ZeRO-3 then gathers the whole model.
        offload: which of `optimizer` and `param` DeepSpeed keeps in host memory.
    """
    n, t = size.parameters, size.trained
    if engine == "DDP":
        copies = 2 * n if weight_bytes == 4 else 0  # autocast keeps bfloat16 copies
        buckets = weight_bytes * t if gpus > 1 else 0
        weights = weight_bytes * n
        return Memory(weights + copies, reference * weights, weight_bytes * t + buckets, 2 * weight_bytes * t)
    gradients, optimizer, host = 6 * t / gpus, 12 * t / gpus, 0.0
    if "optimizer" in offload:  # gradients leave bucket by bucket, for a float32 copy over there; ZeRO-3 keeps both
        gradients, optimizer, host = 0.0, 0.0, (18 if engine == "ZeRO-3" else 16) * t / gpus
    if engine == "ZeRO-2":
        return Memory(2 * n, reference * 2 * n, gradients, optimizer, host)
    if engine == "ZeRO-3":
        parted = 2 * n / gpus
        gathered = 2 * (n if rollouts else min(n, MAX_LIVE)) if gpus > 1 else 0
        if "param" in offload:
            parted, host = 0.0, host + parted
        return Memory(parted + gathered, reference * 2 * n / gpus, gradients, optimizer, host)
    raise VLNR1Error(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")


def activations(
    config: PretrainedConfig, tokens: int, patches: int, checkpointing: bool, vision_trained: bool = True
) -> int:
    """Bytes of bfloat16 activations kept for the backward pass of one micro-batch, roughly.

    Per token, a decoder layer keeps 30 h + 8 i bytes (hidden and intermediate size), per patch a vision block
    22 e + 6 m (width and MLP width): autograd's own count, without attention matrices, which fused kernels never hold.
    With gradient checkpointing every layer keeps its input, and one of them is recomputed at a time.
    """
    text, vision = config.get_text_config(), config.vision_config
    width = getattr(vision, "embed_dim", None) or vision.hidden_size  # Qwen2-VL's vision.hidden_size is the output's
    mlp = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    layer = (30 * text.hidden_size + 8 * text.intermediate_size) * tokens
    block = (22 * width + 6 * mlp) * patches
    depth = vision.depth if vision_trained else 0
    if not checkpointing:
        return text.num_hidden_layers * layer + depth * block
    inputs = 2 * text.num_hidden_layers * text.hidden_size * tokens + 2 * depth * width * patches
    return inputs + max(layer, block if depth else 0)


def counting_processor(patch_size: int = 14) -> ProcessorMixin:
    """A Qwen-VL processor that counts without Qwen's vocabulary: a token is a piece of Qwen2's own pre-tokenizer.

    Frames come out exactly, and so do answers. Nearly every English word has a token of its own, and digits and
    punctuation always do: a prompt of the authors' release with 244 tokens of Qwen's vocabulary counts as 243.
    """
    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    wrapped = Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=patch_size),
        tokenizer=wrapped,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
