"""Exact speed-ups of a loaded model's vision tower; weights, state dict and results stay what they are.

- The patch embedding is a convolution whose stride is its kernel: a matrix product. On CPUs that is several times
  faster. A still image fills both temporal slots of a patch with the same pixels, so patches of one slot are enough
  (`PromptEncoder(single_slot=True)`), multiplied by the sum of the two slots' weights.
- Stock attention takes the images of a batch one after another; images of equal size go through in one call.
- Each distinct frame of a batch is encoded once: the batch then holds the pixels of the distinct frames and
  `image_index`, for each image of the prompts the number of its frame.

Examples:
    >>> speed_up_vision(model)                                                              # doctest: +SKIP
    >>> model(**encoder.batch(samples))         # with or without `image_index`            # doctest: +SKIP
"""

from __future__ import annotations

import functools
import types
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_position_ids


def core_of(model: Any) -> Any:
    """The module with `visual` and `language_model` below a (PEFT-wrapped) Qwen-VL for generation."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model


def is_fast(model: nn.Module) -> bool:
    """Whether `speed_up_vision` was applied."""
    return getattr(core_of(model), "vlnr1_fast_vision", False)


def speed_up_vision(model: PreTrainedModel) -> None:
    """Apply the speed-ups of this module in place; applying them twice does nothing.

    Only instance methods are replaced, never modules or parameters, so saving, PEFT, DeepSpeed and gradients
    work as before.
    """
    if is_fast(model):
        return
    core = core_of(model)
    visual = core.visual
    embed = visual.patch_embed
    if type(embed.proj) is nn.Conv3d:
        embed.forward = types.MethodType(_patch_embed, embed)
        # Replacing the convolution's own method keeps the hooks with which ZeRO-3 gathers its weight.
        embed.proj.forward = types.MethodType(_convolve_patches, embed.proj)  # type: ignore[method-assign]  # as said
    for module in visual.modules():
        if type(module).__name__.endswith("VisionAttention"):
            module.forward = types.MethodType(functools.partial(_attend, stock=module.forward), module)
    core.forward = types.MethodType(functools.partial(_forward_distinct, stock=core.forward), core)
    core.vlnr1_fast_vision = True


def _patch_embed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Patches `[N, C*T*P*P]`, or `[N, C*P*P]` for still images, to `[N, width]`."""
    channels, side = self.in_channels, self.patch_size
    slots = hidden_states.shape[-1] // (channels * side * side)
    patches = hidden_states.view(-1, channels, slots, side, side)
    return self.proj(patches.to(self.proj.weight.dtype)).view(-1, self.embed_dim)


def _convolve_patches(self: nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
    """The convolution of patches of exactly the kernel's size, `[N, C, T, P, P]`, as a matrix product `[N, width]`."""
    weight = self.weight
    if patches.shape[2] < weight.shape[2]:
        if weight.dtype == torch.float32:
            weight = weight.sum(2, keepdim=True)
        else:  # a sum rounded to 16 bits would be another weight
            patches = patches.expand(-1, -1, weight.shape[2], -1, -1)
    return F.linear(patches.flatten(1), weight.flatten(1), self.bias)


def _attend(
    self: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    *,
    stock: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Vision attention over chunks of equal length in one call; unequal ones as stock does it."""
    chunks = len(cu_seqlens) - 1
    length, rest = divmod(len(hidden_states), chunks)
    flash = is_flash_attention_requested(self.config)
    if flash or rest or chunks == 1 or bool((cu_seqlens.diff() != length).any()):
        return stock(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
    qkv = self.qkv(hidden_states).view(chunks, length, 3, self.num_heads, -1)
    cos, sin = (table.view(chunks, length, 1, -1).float() for table in position_embeddings)
    query, key = (_rotate(part, cos, sin).transpose(1, 2) for part in qkv[:, :, :2].unbind(2))
    value = qkv[:, :, 2].transpose(1, 2)
    mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
    return self.proj(mixed.transpose(1, 2).reshape(len(hidden_states), -1))


def _rotate(part: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding in float32, as stock vision attention does it."""
    x = part.float()
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + turned * sin).to(part.dtype)


def encode_frames(core: Any, pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> Any:
    """Vision features of frames: stock `get_image_features`, with the positions inside equal frames made once."""
    known: dict[str, torch.Tensor] = {}
    if core.config.model_type == "qwen2_vl" and len(grid_thw) > 1 and bool((grid_thw == grid_thw[:1]).all()):
        one = get_vision_position_ids(grid_thw[:1], core.visual.spatial_merge_size)
        known["image_position_ids"] = one.repeat(len(grid_thw), 1)
    return core.get_image_features(pixel_values, grid_thw, return_dict=True, **known)


def encode_images(
    core: nn.Module, pixel_values: torch.Tensor, grid_thw: torch.Tensor, image_index: torch.Tensor | None = None
) -> Any:
    """Features of all images of a batch whose `pixel_values` hold each distinct frame once.

    Args:
        grid_thw: of every image [images, 3].
        image_index: for each image the number of its frame; None when every image has pixels of its own.
    """
    index = list(range(len(grid_thw))) if image_index is None else image_index.tolist()
    first = {frame: image for image, frame in reversed(list(enumerate(index)))}
    frames = grid_thw[[first[frame] for frame in range(len(first))]]
    return pick_features(encode_frames(core, pixel_values, frames), index)


def pick_features(features: Any, index: list[int]) -> Any:
    """Features of the images with these numbers, as the model takes them (`mm_encoder_outputs`)."""
    levels = getattr(features, "deepstack_features", None) or []
    return SimpleNamespace(
        pooler_output=tuple(features.pooler_output[i] for i in index),
        deepstack_features=[tuple(level[i] for i in index) for level in levels] or None,
    )


def _forward_distinct(
    self: nn.Module,
    *args: Any,
    stock: Any,
    pixel_values: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The core's forward, in which `pixel_values` may hold each distinct frame once (see `image_index`)."""
    if pixel_values is not None:
        kwargs["mm_encoder_outputs"] = {
            "image": encode_images(self, pixel_values, kwargs["image_grid_thw"], image_index)
        }
    return stock(*args, **kwargs)
