"""Vision features of frames, each encoded once in its life and not once for every prompt in which it is history."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from habitat_vlnr1.lvlm.fast_vision import core_of, encode_frames
from habitat_vlnr1.lvlm.frames import Patches
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.query import Query

MAX_STREAMS = 1024


class FeatureCache:
    """Vision features of frames by key, in at most `cache_mb` MiB, on the model's device.

    Those of a stream (`Prompt.stream`) go, and its cut frames too, when it shows a prompt with none of them: its walk
    has ended. Else a long evaluation would fill the cache with frames that nobody asks for again.
    """

    def __init__(self, model: PreTrainedModel, encoder: PromptEncoder, cache_mb: float):
        self.core = core_of(model)
        self.cutter = encoder.cutter
        self.capacity = int(cache_mb * 2**20)
        self._kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()
        self._size = 0
        self._shown: OrderedDict[Hashable, set[Hashable]] = OrderedDict()  # stream → keys of its walk so far

    def clear(self) -> None:
        self._kept.clear()
        self._size = 0
        self._shown.clear()

    def of(self, queries: Sequence[Query], start: Sequence[int], streams: Sequence[Hashable]) -> Any:
        """Features of the queries' images in their order, as the model takes them (`mm_encoder_outputs`).

        Args:
            start: of each query its first image that is wanted.
            streams: of each query; None has none.

        Returns: None where no image is.
        """
        for stream, query in zip(streams, queries, strict=True):
            self._follow(stream, query.keys)
        frames = [frame for query, first in zip(queries, start, strict=True) for frame in query.frames[first:]]
        keys = [key for query, first in zip(queries, start, strict=True) for key in query.keys[first:]]
        if not frames:
            return None
        names = [("no key", id(frame)) if key is None else key for key, frame in zip(keys, frames, strict=True)]
        now = {name: self._kept[name] for name in names if name in self._kept}
        new = {name: frame for name, frame in zip(names, frames, strict=True) if name not in now}
        if new:
            now.update(zip(new, self._encode(list(new.values())), strict=True))
        for key in keys:
            if key is not None:
                self._keep(key, now[key])
        pooled, *levels = zip(*(now[name] for name in names), strict=True)
        return SimpleNamespace(pooler_output=pooled, deepstack_features=levels)

    def _follow(self, stream: Hashable, keys: Sequence[Hashable]) -> None:
        """Note what a stream shows, and forget its last walk where this is another one's prompt."""
        keyed = {key for key in keys if key is not None}
        if stream is None or not keyed:
            return
        if len(self._shown) >= MAX_STREAMS and stream not in self._shown:
            self._drop(self._shown.popitem(last=False)[1])
        shown = self._shown.setdefault(stream, set())
        self._shown.move_to_end(stream)
        if shown.isdisjoint(keyed):
            self._drop(shown)
            shown.clear()
        shown |= keyed

    def _drop(self, keys: set[Hashable]) -> None:
        self.cutter.drop(keys)
        for key in keys:
            self._size -= sum(part.nbytes for part in self._kept.pop(key, ()))

    def _encode(self, frames: Sequence[Patches]) -> list[tuple[Tensor, ...]]:
        """Per frame its features, and those for deeper layers where the model (Qwen3-VL) has them."""
        device = next(self.core.parameters()).device
        pixels = self.cutter.pixel_values(frames, single_slot=True).to(device)
        out = encode_frames(self.core, pixels, self.cutter.grid_thw(frames).to(device))
        levels = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
        # Copies: parts of one large tensor would keep all of it.
        return [tuple(level[i].clone() for level in levels) for i in range(len(frames))]

    def _keep(self, key: Hashable, features: tuple[Tensor, ...]) -> None:
        if key not in self._kept:
            self._size += sum(part.nbytes for part in features)
            self._kept[key] = features
        self._kept.move_to_end(key)
        while self._size > self.capacity:
            _, oldest = self._kept.popitem(last=False)
            self._size -= sum(part.nbytes for part in oldest)
