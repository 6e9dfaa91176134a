"""Forward passes over a batch of prompts and the answers that are tried behind them.

Each prompt is one row of one growing key-value cache:

    kept beginning (padded on its left) | the rest of the prompt (padded on its right) | words of answers, pass by pass

Words of answers form a tree: a path is the actions so far, and its words see the prompt and the words of the paths
that it continues, none of its siblings'. So one pass can try several answers, and all samples of a prompt share a row.
M-RoPE positions are given explicitly, and masks say who sees whom, so a row does not notice what stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from habitat_vlnr1.lvlm.drafts import Path
from habitat_vlnr1.lvlm.fast_vision import core_of
from habitat_vlnr1.lvlm.grammar import AnswerGrammar
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.letters import letter_logits
from habitat_vlnr1.lvlm.prefix_cache import Beginning
from habitat_vlnr1.lvlm.query import Query

Span = tuple[np.ndarray, np.ndarray]
"""Token ids [L] and M-RoPE positions [3, L]."""


class Passes:
    """One batch of prompts, from reading them to the last of their answers.

    Attributes:
        logits: for each prompt, by path, the logits of the four letters behind it, float32 [4] on the CPU; `()` is the
            prompt alone.
        count: passes so far.
    """

    def __init__(self, model: PreTrainedModel, encoder: PromptEncoder, grammar: AnswerGrammar):
        self.model = model
        self.core = core_of(model)
        self.encoder = encoder
        self.grammar = grammar
        self.logits: list[dict[Path, Tensor]] = []
        self.count = 0
        self._rows: list[int] = []  # the prompts that are still in the cache
        self._seen: list[dict[Path, list[int]]] = []  # where the words of a path stand, from the end of the prompts on
        self._width = 0  # of the words of answers so far

    def read(
        self, queries: Sequence[Query], beginnings: Sequence[Beginning], features: Any, paths: Sequence[Path]
    ) -> None:
        """Run the prompts, and behind each of them the same paths.

        Args:
            beginnings: of each prompt what is not run again.
            features: of the images behind those beginnings (`FeatureCache.of`).
            paths: each later than the ones that it continues.
        """
        self._rows = list(range(len(queries)))
        self._seen = [{(): []} for _ in queries]
        self.logits = [{} for _ in queries]
        self._next = [int(query.positions.max()) + 1 for query in queries]
        self._kept = [beginning.tokens for beginning in beginnings]
        self._lengths = [len(query.ids) for query in queries]
        self._cache: Any  # more than its annotations promise, where every layer is a plain one
        self._cache, kept = self._kept_states(beginnings)
        rest = [(query.ids[n:], query.positions[:, n:]) for query, n in zip(queries, self._kept, strict=True)]
        table = self._table(rest)
        self._prompt = torch.cat([kept, table["attention_mask"].bool()], dim=1)
        ends: list[tuple[int, Path, int]] = [(row, (), len(ids) - 1) for row, (ids, _) in enumerate(rest)]
        self._run(table, ends, [paths] * len(queries), features)

    def states(self, row: int) -> Tensor:
        """Keys and values of a prompt's tokens, in memory of their own (`PrefixCache.keep`); after `read`."""
        start = int(max(self._kept)) - self._kept[row]
        part = slice(start, start + self._lengths[row])
        return torch.stack([side[row, :, part] for layer in self._cache.layers for side in (layer.keys, layer.values)])

    def extend(self, wanted: Mapping[int, Sequence[Path]]) -> None:
        """Run further paths; prompts that none is wanted of leave the batch.

        Args:
            wanted: by number of the prompt; the path that one continues has been run, or is before it.
        """
        stay = [place for place, row in enumerate(self._rows) if row in wanted]
        if len(stay) < len(self._rows):
            index = torch.tensor(stay, device=self.model.device)
            self._cache.batch_select_indices(index)
            self._prompt = self._prompt[index]
            self._rows = [self._rows[place] for place in stay]
        self._run(None, [], [wanted[row] for row in self._rows], None)

    def _kept_states(self, beginnings: Sequence[Beginning]) -> tuple[DynamicCache, Tensor]:
        """A cache with the kept beginnings side by side, and where there is something in it, bool [B, tokens]."""
        longest = max(beginning.tokens for beginning in beginnings)
        known = next((part.states for part in beginnings if part.states is not None), None)
        if known is None:
            return DynamicCache(), torch.zeros(len(beginnings), 0, dtype=torch.bool, device=self.model.device)
        layers, heads, _, width = known.shape
        together = known.new_zeros(layers, len(beginnings), heads, longest, width)
        mask = torch.zeros(len(beginnings), longest, dtype=torch.bool)
        for row, part in enumerate(beginnings):
            if part.states is not None:
                together[:, row, :, longest - part.tokens :] = part.states
                mask[row, longest - part.tokens :] = True
        pairs = zip(together[::2], together[1::2], strict=True)
        return DynamicCache(ddp_cache_data=pairs), mask.to(self.model.device)

    def _run(
        self,
        prompts: dict[str, Tensor] | None,
        ends: list[tuple[int, Path, int]],
        wanted: Sequence[Sequence[Path]],
        features: Any,
    ) -> None:
        """One forward pass: the rest of the prompts, if they have not been read, and the words of these paths.

        Args:
            ends: places in the batch, paths, and where their last tokens stand.
        """
        before = 0 if prompts is None else prompts["input_ids"].shape[1]
        spans, sight, more = self._words(wanted)
        ends = ends + [(place, path, before + last) for place, path, last in more]
        tables = [table for table in (prompts, self._table(spans) if more else None) if table is not None]
        batch = {name: torch.cat([table[name] for table in tables], dim=-1) for name in ("input_ids", "position_ids")}
        mask = self._mask(before, torch.from_numpy(sight).to(self.model.device))
        with dense_attention(self.core):
            out = self.core(
                **batch,
                attention_mask=self._as_model_takes_it(mask[:, None]),
                past_key_values=self._cache,
                use_cache=True,
                **({"mm_encoder_outputs": {"image": features}} if features is not None else {}),
            )
        self.count += 1
        rows, last = torch.tensor([(place, at) for place, _, at in ends], device=self.model.device).T
        choices = [self.grammar.choices(path[-1] if path else None) for _, path, _ in ends]
        hidden = out.last_hidden_state[rows, last]
        four = letter_logits(self.model.get_output_embeddings(), hidden, choices).cpu()
        for (place, path, _), logits in zip(ends, four, strict=True):
            self.logits[self._rows[place]][path] = logits

    def _words(self, wanted: Sequence[Sequence[Path]]) -> tuple[list[Span], np.ndarray, list[tuple[int, Path, int]]]:
        """The tokens of these paths for each row, which words each token sees, bool [B, L, words so far and now], and
        places, paths and last tokens as `_run` takes them."""
        spans: list[Span] = []
        ends: list[tuple[int, Path, int]] = []
        sees: list[tuple[int, int, list[int]]] = []
        for place, (row, paths) in enumerate(zip(self._rows, wanted, strict=True)):
            seen = self._seen[row]
            ids: list[int] = []
            positions: list[int] = []
            for path in paths:
                words, above = self.grammar.words(path), seen[path[:-1]]
                own = range(self._width + len(ids), self._width + len(ids) + len(words))
                seen[path] = [*above, *own]
                sees += [(place, len(ids) + k, seen[path][: len(above) + k + 1]) for k in range(len(words))]
                start = self._next[row] + len(above)
                positions += range(start, start + len(words))
                ids += words
                ends.append((place, path, len(ids) - 1))
            spans.append((np.array(ids, dtype=np.int64), np.tile(np.array(positions, dtype=np.int64), (3, 1))))
        longest = max(len(ids) for ids, _ in spans)
        sight = np.zeros((len(spans), longest, self._width + longest), dtype=bool)
        for place, token, columns in sees:
            sight[place, token, columns] = True
        self._width += longest
        return spans, sight, ends

    def _table(self, spans: Sequence[Span]) -> dict[str, Tensor]:
        return {name: table.to(self.model.device) for name, table in self.encoder.pad(spans, left=False).items()}

    def _mask(self, before: int, sight: Tensor) -> Tensor:
        """Who sees whom, bool [B, tokens now, tokens so far and now].

        Args:
            before: how many tokens of the prompts run now.
            sight: of the words of answers that do, from `_words`.
        """
        prompt, words = self._prompt, sight.shape[1]
        answers = torch.cat([prompt[:, None].expand(-1, words, -1), sight], dim=2)
        if not before:
            return answers
        place = torch.arange(prompt.shape[1], device=prompt.device)
        causal = place <= place[-before:, None]
        return torch.cat([F.pad(causal & prompt[:, None], (0, sight.shape[2])), answers], dim=1)

    def _as_model_takes_it(self, mask: Tensor) -> Tensor:
        if self.core.language_model.config._attn_implementation == "eager":  # it adds the mask to its scores
            dtype = self.model.dtype
            return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
        return mask


@contextmanager
def dense_attention(core: Any) -> Iterator[None]:
    """Within, the language model attends in a way that takes any mask: as it does, where that is eager or SDPA, else
    (flash attention, flex attention) with SDPA."""
    text = core.language_model
    own = text.config._attn_implementation
    if own in ("eager", "sdpa"):
        yield
        return
    text.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        text.set_attn_implementation(own)
