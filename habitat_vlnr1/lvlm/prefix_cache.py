"""Keys and values of prompts, kept for the next prompt that begins alike.

The prompts of a walk begin with the same words and, as far as its memory keeps showing them, the same frames. Causal
attention makes what the model computes there a function of the beginning alone, M-RoPE positions included; so a query
runs only what comes behind it. How much that is depends on the memory: see `benchmarks/reuse.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace

from torch import Tensor

from habitat_vlnr1.lvlm.query import Query, common_beginning


@dataclass(frozen=True)
class Beginning:
    """What of a prompt need not be run again.

    Args:
        tokens: how many of the prompt's first ones.
        images: how many of its first ones.
        states: keys and values of these tokens in turn, layer by layer: [2 · layers, heads, tokens, width]; None where
            there are none.
    """

    tokens: int = 0
    images: int = 0
    states: Tensor | None = None


class PrefixCache:
    """Of each stream of prompts the keys and values of the last one, on the model's device.

    Args:
        cache_mb: MiB for all of them together; the streams that were not asked for the longest time go first. 0 keeps
            nothing.
    """

    def __init__(self, cache_mb: float):
        self.capacity = int(cache_mb * 2**20)
        self.size = 0  # bytes
        self._kept: OrderedDict[Hashable, tuple[Query, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()
        self.size = 0

    def beginning(self, stream: Hashable, query: Query) -> Beginning:
        """What the stream's last prompt has in common with this one, never its last token."""
        if stream is None or stream not in self._kept:
            return Beginning()
        last, states = self._kept[stream]
        tokens, images = common_beginning([query, last])
        return Beginning(tokens, images, states[:, :, :tokens]) if tokens else Beginning()

    def keep(self, stream: Hashable, query: Query, states: Tensor) -> None:
        """Put a prompt in the place of the stream's last one.

        Args:
            states: as in `Beginning`, of all its tokens, in memory of their own.
        """
        self.drop(stream)
        self._kept[stream] = (replace(query, frames=()), states)  # frames are told by their keys from now on
        self.size += states.nbytes
        while self.size > self.capacity:
            self.drop(next(iter(self._kept)))

    def drop(self, stream: Hashable) -> None:
        """Forget a stream."""
        if stream in self._kept:
            self.size -= self._kept.pop(stream)[1].nbytes
