"""The logits of the option letters, in float32 whatever the model computes in.

A head in bfloat16 gives logits of eight bits: two of the four are often equal, and an argmax then takes the first,
which is STOP. So the letters' logits are computed once more than the head would, from its input and the few rows of
its weight, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def letter_logits(head: nn.Module, hidden: Tensor, choices: Sequence[Sequence[int]]) -> Tensor:
    """Logits, float32 [rows, 4].

    Args:
        head: the model's output embedding; one that PEFT has wrapped computes them itself, in its own precision.
        hidden: its input [rows, width].
        choices: ids of four tokens for each row.
    """
    ids = torch.tensor(choices, device=hidden.device)
    if not _is_plain(head):
        return head(hidden).gather(1, ids).float()
    rows: Any = head.weight
    return (rows[ids].float() @ hidden.float()[:, :, None])[:, :, 0]


@contextmanager
def letters_alone(head: nn.Module, ids: Sequence[int]) -> Iterator[list[int]]:
    """Within, the head gives the logits of these tokens alone, float32 [..., len(ids)], in a forward pass of the whole
    model, through which gradients flow and under which ZeRO-3 gathers the weight.

    Yields the column of each id; with a head that PEFT has wrapped these are the ids, and the logits its own.
    """
    if not _is_plain(head):
        yield list(ids)
        return
    rows = torch.tensor(ids)

    def forward(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ plain.weight[rows.to(hidden.device)].float().T

    plain: Any = head
    stock = plain.forward
    plain.forward = forward
    try:
        yield list(range(len(ids)))
    finally:
        plain.forward = stock


def _is_plain(head: nn.Module) -> bool:
    return type(head) is nn.Linear and head.bias is None
