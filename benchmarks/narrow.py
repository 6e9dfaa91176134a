"""bfloat16 on a CPU without instructions for it, where PyTorch multiplies number by number, fifty times slower.

Within `wide_products`, products of bfloat16 tensors are made in float32 and rounded once, as hardware makes them,
forwards and backwards, whoever calls for them (DeepSpeed has linear layers of its own). Models stay in bfloat16, and
so does their memory, but for a part of one matrix at a time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
WIDE_AT_ONCE = 1 << 24
"""Numbers of a matrix that are made wide at once: 64 MiB."""
OTHERS = {
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}
"""Products besides those of two matrices."""
STAY_WIDE = {aten._scaled_dot_product_flash_attention_for_cpu.default: (1,)}
"""Results that are in float32 with stock too: attention's log of the sum of exponentials."""


def is_slow() -> bool:
    """Whether this CPU has no instructions for bfloat16."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def wide_products() -> AbstractContextManager[Any]:
    """Products of bfloat16 in float32 where this CPU is slow without; elsewhere nothing changes."""
    return _WideProducts() if is_slow() else nullcontext()


class _WideProducts(TorchDispatchMode):
    """Takes the place of the products, below autograd."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = next((arg for arg in args if isinstance(arg, Tensor)), None)
        if first is None or first.dtype != torch.bfloat16 or first.device.type != "cpu":
            return func(*args, **kwargs)
        if func is aten.mm.default:
            return _product(*args)
        if func is aten.addmm.default and not kwargs:
            bias, left, right = args
            return _product(left, right, bias)
        if func in OTHERS:
            return _widely(func, args, kwargs)
        return func(*args, **kwargs)


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right + bias. The larger matrix, a weight or its gradient's factor, is made wide in parts."""
    (rows, inner), columns = left.shape, right.shape[1]
    result = left.new_empty(rows, columns)
    if rows > columns:
        wide = right.float()
        for part in _parts(rows, inner):
            result[part] = _plus(
                torch.mm(left[part].float(), wide), bias if bias is None or bias.dim() < 2 else bias[part]
            )
    else:
        wide = left.float()
        for part in _parts(columns, inner):
            result[:, part] = _plus(torch.mm(wide, right[:, part].float()), None if bias is None else bias[..., part])
    return result


def _plus(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product.add_(bias.float())


def _parts(length: int, inner: int) -> list[slice]:
    step = max(1, WIDE_AT_ONCE // max(1, inner))
    return [slice(start, start + step) for start in range(0, length, step)]


def _widely(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another product's results, in bfloat16."""

    def widen(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    def narrow(tensor: Tensor) -> Tensor:
        return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor

    results = func(*tree_map_only(Tensor, widen, args), **tree_map_only(Tensor, widen, kwargs))
    if isinstance(results, Tensor):
        return narrow(results)
    stay = STAY_WIDE.get(func, ())
    return tuple(
        narrow(result) if isinstance(result, Tensor) and place not in stay else result
        for place, result in enumerate(results)
    )
