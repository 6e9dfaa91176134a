"""Answers in free text to questions about a history, several about one history at once.

Their prompts begin with the same frames. A frame is encoded once in its life (`feature_cache.py`), what the prompts
have in common runs once, and its keys and values stand before all of them. Then the answers grow side by side, token
by token, greedily; the result is that of `generate` for each prompt alone, up to rounding.

Examples:
    >>> decoder = load_text_decoder("data/vlnr1/eqa/checkpoints/checkpoint-3000")                  # doctest: +SKIP
    >>> decoder.answer(["What colour is the sofa?", "In which room is it?"], frames)               # doctest: +SKIP
    ['red', 'blue room']
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from habitat_vlnr1.errors import CheckpointError
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.fast_vision import core_of, speed_up_vision
from habitat_vlnr1.lvlm.feature_cache import FeatureCache
from habitat_vlnr1.lvlm.frames import Frame
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.passes import dense_attention
from habitat_vlnr1.lvlm.query import Query, common_beginning


@dataclass
class TextCounts:
    """What a decoder has done so far.

    Args:
        answers: given.
        tokens: of the prompts.
        tokens_reused: how many of them were not run for each prompt, as they stand in all prompts of a history.
    """

    answers: int = 0
    tokens: int = 0
    tokens_reused: int = 0


class TextDecoder:
    """Asks a model for free text.

    Args:
        model: a Qwen-VL on its device; `speed_up_vision` is applied to it.
        encoder: makes the prompts.
        max_new_tokens: the longest answer.
        feature_cache_mb: MiB for frame features.

    Attributes:
        counts: what was done so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: PromptEncoder,
        *,
        max_new_tokens: int = 32,
        feature_cache_mb: float = 256,
    ):
        speed_up_vision(model)
        self.model = model
        self.core = core_of(model)
        self.encoder = encoder
        self.max_new_tokens = max_new_tokens
        self.features = FeatureCache(model, encoder, feature_cache_mb)
        self.counts = TextCounts()

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[str], frames: Sequence[Frame], keys: Sequence[Hashable] | None = None
    ) -> list[str]:
        """One answer per question, all about one history.

        Args:
            frames: uint8 arrays [H, W, 3] or files; those of the past in order of time, then the current one.
            keys: an identity per frame, by which its features are kept; files are their own.

        Raises:
            CheckpointError: the model's numbers are not finite.
            FrameError: a frame cannot be read.
        """
        if not questions:
            return []
        if keys is None:  # an array is the same frame in all of these prompts, and in no other
            keys = [object() if isinstance(frame, np.ndarray) else frame for frame in frames]
        queries = [self.encoder.query(question, frames, keys, is_question=True) for question in questions]
        with dense_attention(self.core):
            answers = self._grow(queries)
        self.counts.answers += len(answers)
        end = self.encoder.end_id
        texts = [ids[: ids.index(end)] if end in ids else ids for ids in answers]
        return [self.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in texts]

    def _grow(self, queries: Sequence[Query]) -> list[list[int]]:
        """Token ids of each answer."""
        logits, cache, mask = self._read(queries)
        position = torch.tensor([int(query.positions.max()) for query in queries], device=self.model.device)
        ended = torch.zeros(len(queries), dtype=torch.bool, device=self.model.device)
        chosen: list[Tensor] = []
        while True:
            if not logits.isfinite().all():
                raise CheckpointError(checkpoint.why_not_finite(self.model))
            token = logits.argmax(-1).masked_fill(ended, self.encoder.end_id)
            chosen.append(token)
            ended |= token == self.encoder.end_id
            if bool(ended.all()) or len(chosen) == self.max_new_tokens:
                return torch.stack(chosen, dim=1).tolist()
            position = position + 1
            mask = torch.cat([mask, mask.new_ones(len(queries), 1)], dim=1)
            hidden = self._run(token[:, None], position[None, :, None].expand(3, -1, -1), mask, cache)
            logits = self._logits(hidden[:, -1])

    def _read(self, queries: Sequence[Query]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Run the prompts: logits behind each [B, V], keys and values, and where there are some [B, L]."""
        common, images = common_beginning(queries)
        cache = DynamicCache()
        if common:
            first = queries[0]
            shown = replace(first, frames=first.frames[:images], keys=first.keys[:images])
            beginning = self._table([(first.ids[:common], first.positions[:, :common])])
            self._run(**beginning, cache=cache, features=self.features.of([shown], [0], [None]))
            cache.batch_select_indices(torch.zeros(len(queries), dtype=torch.long, device=self.model.device))
        rest = self._table([(query.ids[common:], query.positions[:, common:]) for query in queries])
        before = torch.ones(len(queries), common, dtype=torch.long, device=self.model.device)
        mask = torch.cat([before, rest["attention_mask"]], dim=1)
        left = self.features.of(queries, [images] * len(queries), [None] * len(queries))
        hidden = self._run(rest["input_ids"], rest["position_ids"], mask, cache, left)
        last = rest["attention_mask"].sum(1) - 1
        self.counts.tokens += sum(len(query.ids) for query in queries)
        self.counts.tokens_reused += common * (len(queries) - 1)
        return self._logits(hidden[torch.arange(len(queries), device=last.device), last]), cache, mask

    def _run(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        cache: DynamicCache,
        features: Any = None,
    ) -> Tensor:
        """The language model's states [B, L, width] of these tokens, whose keys and values go into the cache."""
        out = self.core(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            **({"mm_encoder_outputs": {"image": features}} if features is not None else {}),
        )
        return out.last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden).float()

    def _table(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        return {name: table.to(self.model.device) for name, table in self.encoder.pad(rows, left=False).items()}


def load_text_decoder(
    path: str | os.PathLike[str],
    card: checkpoint.ModelCard | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    **options: Any,
) -> TextDecoder:
    """Load a checkpoint and make what asks it for text. Decoders of one checkpoint share its model.

    Args:
        path: a folder or a Hugging Face id.
        card: how frames are cut and prompts are put; None: as the checkpoint's own `vlnr1.json` says.
        dtype: as `checkpoint.load` takes it.
        device: None: the process's current GPU where there is one.
        attn_implementation: as `checkpoint.load` takes it.
        options: of `TextDecoder`.

    Raises:
        CheckpointError: it cannot be loaded, or has no card and none is given.
    """
    model, processor, card = checkpoint.load_shared(path, card, dtype, device, attn_implementation)
    return TextDecoder(model, PromptEncoder.from_card(processor, card), **options)
