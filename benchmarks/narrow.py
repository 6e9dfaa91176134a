"""bfloat16 on a CPU without instructions for it, where PyTorch multiplies number by number, fifty times slower.

Within `wide_products`, products of bfloat16 tensors are made in float32 and rounded once, as hardware makes them.
Models stay in bfloat16, and so does their memory, but for one weight at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LINEAR, ATTENTION = F.linear, F.scaled_dot_product_attention


def is_slow() -> bool:
    """Whether this CPU has no instructions for bfloat16."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def wide_products() -> Iterator[None]:
    """Linear layers and attention in float32 where this CPU is slow without; elsewhere nothing changes."""
    if not is_slow():
        yield
        return
    F.linear, F.scaled_dot_product_attention = _linear, _attention  # type: ignore[assignment]  # with the same arguments
    try:
        yield
    finally:
        F.linear, F.scaled_dot_product_attention = LINEAR, ATTENTION


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16:
        return LINEAR(input, weight, bias)
    product: Tensor = _Linear.apply(input, weight, bias)
    return product


class _Linear(torch.autograd.Function):
    """input @ weight.T + bias; what is kept for the way back is in bfloat16."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input if weight.requires_grad else None, weight)
        return LINEAR(input.float(), weight.float(), None if bias is None else bias.float()).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (input, weight), grad = ctx.saved_tensors, grads[0].float()
        rows = grad.flatten(0, -2)
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        of_input = (grad @ weight.float()).to(weight.dtype) if needs_input else None
        of_weight = (rows.T @ input.flatten(0, -2).float()).to(weight.dtype) if needs_weight else None
        of_bias = rows.sum(0).to(weight.dtype) if needs_bias else None
        return of_input, of_weight, of_bias


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    if query.dtype != torch.bfloat16:
        return ATTENTION(query, key, value, attn_mask, **options)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    return ATTENTION(query.float(), key.float(), value.float(), attn_mask, **options).to(query.dtype)
