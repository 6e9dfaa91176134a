"""A small, randomly initialised Qwen2-VL, made offline: for tests, for the quick start, for machines without a GPU.

It is a stock Qwen2-VL in every respect (classes, chat template, M-RoPE, files on disk); only its sizes and its
tokenizer are its own. The tokenizer is a byte-level BPE learned from the given texts. Texts that say the same thing
every time (the words of an action, the system prompt) are single tokens, so that a sequence has about 50 tokens
instead of 150 and trains three times as fast; anything else still tokenises, byte by byte in the worst case.

Examples:
    >>> model, processor = build_tiny(instructions, space=ActionSpace(turn_angle=30))          # doctest: +SKIP
    >>> checkpoint.save("models/tiny", model, processor, ModelCard(...))                       # doctest: +SKIP
    >>> model, processor = checkpoint.load("models/tiny")                                      # doctest: +SKIP
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from habitat_vlnr1.actions import SEPARATOR, ActionSpace
from habitat_vlnr1.errors import VLNR1Error

PATCH, MERGE = 14, 2
CELL = PATCH * MERGE  # side in pixels of one merged visual token

# The order in which Qwen2-VL numbers its special tokens (ids 151643 … 151656 of the released checkpoints).
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Qwen2-VL's chat template, without its options for numbering pictures.
CHAT_TEMPLATE = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}\
<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
IMAGE_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
FIXED_TEXTS = ("system\nYou are a helpful assistant.", "user\n", "assistant\n")


@dataclass(frozen=True)
class TinySize:
    """Widths and depths of a small Qwen2-VL: `vision_…` of its vision transformer, the others of its language model.

    `width / heads` is the language model's head dimension.
    """

    vision_layers: int
    vision_width: int
    vision_heads: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int


SIZES = {
    "tiny": TinySize(2, 64, 4, 3, 128, 4, 2, 256),
    "small": TinySize(4, 96, 3, 6, 192, 6, 3, 512),
}


def action_tokens(space: ActionSpace) -> list[str]:
    """The words behind each option letter, with and without the comma that follows, for single tokens of their own.

    Letters stay tokens of their own, so a decision is always one of the same four tokens.
    """
    words = [f". {space.describe(action)}" for action in range(4)]
    return [word + end for word in words for end in (SEPARATOR, "")]


def build_tokenizer(texts: Iterable[str], space: ActionSpace, vocab_size: int = 1024) -> Qwen2Tokenizer:
    """Learn a byte-level BPE (Qwen2's way of splitting) in which the words of `texts` are short.

    Args:
        texts: what the model will read and write: instructions, descriptions, the prompt's own words.
        space: the actions whose words become single tokens.
        vocab_size: the most entries, special tokens not counted; learning stops early when every word is a token.
    """
    counts = Counter(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # Every text twice: a word that occurs once is worth a token too.
    tokenizer.train_from_iterator((text for text in sorted(counts) for _ in range(2)), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fixed = [*action_tokens(space), *FIXED_TEXTS]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in dict.fromkeys(fixed)])
    return Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=32768,
    )


def build_processor(tokenizer: Qwen2Tokenizer, image_size: int) -> Qwen2VLProcessor:
    """A Qwen2-VL processor whose images have at most `image_size`² pixels."""
    if image_size < CELL or image_size % CELL:
        raise VLNR1Error(f"image_size must be a multiple of {CELL} pixels, got {image_size}")
    return _processor(tokenizer, image_size, PATCH)


def _processor(tokenizer: Qwen2Tokenizer, image_size: int, patch: int) -> Qwen2VLProcessor:
    size = {"shortest_edge": (patch * MERGE) ** 2, "longest_edge": image_size**2}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=patch),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size, patch_size=patch),
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny(
    texts: Iterable[str],
    *,
    space: ActionSpace,
    size: str = "tiny",
    image_size: int = 84,
    initializer_range: float = 0.08,
    vocab_size: int = 1024,
    seed: int = 0,
) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """Make the model and its processor; the same arguments give the same weights.

    Args:
        texts: what the model will read and write; its tokenizer is learned from them.
        space: the actions of the simulator it is made for.
        size: `tiny` (0.8M parameters) or `small` (3M).
        image_size: side of the square frames in pixels, a multiple of 28; 84 gives 9 visual tokens a frame.
        initializer_range: standard deviation of the initial weights. Qwen's 0.02 hardly learns at this size.
        vocab_size: limit of the learned vocabulary.
        seed: seeds the weights.
    """
    if size not in SIZES:
        raise VLNR1Error(f"unknown model size {size!r}; choose one of {', '.join(SIZES)}")
    # Option letters as the tokenizer meets them in an answer.
    texts = [*texts, *space.options(), "A", "B", "C", "D"]
    tokenizer = build_tokenizer(texts, space, vocab_size)
    config = _config(SIZES[size], tokenizer, initializer_range)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), build_processor(tokenizer, image_size)


def build_shape(
    config: PretrainedConfig,
    texts: Iterable[str] = (),
    *,
    space: ActionSpace,
    image_size: int,
    dtype: str = "bfloat16",
    seed: int = 0,
    processor: ProcessorMixin | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A Qwen-VL of a given shape with random weights, for trials of what such a model takes; it has learned nothing.

    Without its own processor its vocabulary is as large as the real one, but the tokenizer knows the words of `texts`
    alone: its prompts are somewhat shorter than the real one's, its frames and logits the same.

    Args:
        config: of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.
        texts: what the model will read.
        image_size: frames have at most so many pixels a side; a real processor keeps its own limit.
        processor: the model's own, where it is there.

    Raises:
        VLNR1Error: the words do not fit into the config's vocabulary.
    """
    config = copy.deepcopy(config)
    if processor is None:
        tokenizer = build_tokenizer([*texts, *space.options(), "A", "B", "C", "D"], space)
        _number_tokens(config, tokenizer)
        processor = _processor(tokenizer, image_size, config.vision_config.patch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    tokens: Any = processor
    assert model.generation_config is not None, "a model that generates has one"
    model.generation_config.eos_token_id = tokens.tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokens.tokenizer.pad_token_id
    return model.eval(), processor


def _number_tokens(config: PretrainedConfig, tokenizer: Qwen2Tokenizer) -> None:
    """Give a config a tokenizer's numbers of special tokens; its vocabulary stays as large as it is."""
    text = config.get_text_config()
    if len(tokenizer) > text.vocab_size:
        raise VLNR1Error(f"a vocabulary of {text.vocab_size} is too small for {len(tokenizer)} words")
    token: Callable[[str], Any] = tokenizer.convert_tokens_to_ids
    for name, piece in IMAGE_TOKENS.items():
        setattr(config, name, token(piece))
    text.bos_token_id = text.pad_token_id = token("<|endoftext|>")
    text.eos_token_id = token("<|im_end|>")


def _config(size: TinySize, tokenizer: Qwen2Tokenizer, initializer_range: float) -> Qwen2VLConfig:
    head = size.width // size.heads
    # M-RoPE gives each half-dimension of a head to time, height or width, in Qwen's proportions 2 : 3 : 3.
    section = [head // 8, head * 3 // 16, head // 2 - head // 8 - head * 3 // 16]
    token: Callable[[str], Any] = tokenizer.convert_tokens_to_ids
    return Qwen2VLConfig(  # type: ignore[call-arg]  # configs keep keys that are not theirs, as initializer_range
        text_config={
            "vocab_size": -(-len(tokenizer) // 16) * 16,
            "hidden_size": size.width,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": 32768,
            "initializer_range": initializer_range,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": size.vision_width,
            "num_heads": size.vision_heads,
            "hidden_size": size.width,
            "mlp_ratio": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "initializer_range": initializer_range,
        },
        **{name: token(piece) for name, piece in IMAGE_TOKENS.items()},
        tie_word_embeddings=True,
        initializer_range=initializer_range,
    )
