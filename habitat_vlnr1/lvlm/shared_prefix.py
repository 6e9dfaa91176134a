"""Prompts with a common beginning, run once: the steps of an episode, or the answers of a group.

The steps of an episode begin with the same instruction and the same first frame; the G answers of a GRPO group have
the whole prompt in common. A batch can hold the common beginning of each group of rows once
(`PromptEncoder.training_batch(groups=…)`), and of each row only its end. The beginnings go through the model first;
their keys and values then stand before the rows that share them. Hidden states, losses and gradients are those of
whole rows, up to rounding.

Use:
    >>> share_prefixes(model)                                                               # doctest: +SKIP
    >>> model(**encoder.training_batch(queries, answers, groups=[0, 0, 0, 1, 1, 1])).loss   # doctest: +SKIP
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from habitat_vlnr1.lvlm.fast_vision import core_of, encode_images, pick_features, speed_up_vision

if TYPE_CHECKING:
    from habitat_vlnr1.lvlm.inputs import Query


def share_prefixes(model: PreTrainedModel) -> None:
    """Teach the model, in place, batches with `prefix_input_ids`; others go through as before.

    As in `speed_up_vision`, which is applied too, only the core's `forward` is replaced.
    """
    speed_up_vision(model)
    core = core_of(model)
    if not getattr(core, "vlnr1_shares_prefixes", False):
        core.forward = types.MethodType(functools.partial(_forward_shared, stock=core.forward), core)
        core.vlnr1_shares_prefixes = True


def common_beginning(queries: Sequence[Query]) -> tuple[int, int]:
    """How many tokens, and how many images among them, all prompts begin with.

    Images count whole, and only when they are the same cut frame. The last token of a prompt is never common: it
    predicts the answer.
    """
    first = queries[0]
    tokens = min(len(query.ids) for query in queries) - 1
    images = min(len(query.frames) for query in queries)
    for query in queries[1:]:
        differs = (query.ids[:tokens] != first.ids[:tokens]).nonzero()[0]
        tokens = int(differs[0]) if len(differs) else tokens
        same = [a is b for a, b in zip(first.frames, query.frames, strict=False)]
        images = min(images, (*same, False).index(False))
    for number, (start, end) in enumerate(first.spans):
        if end > tokens or number >= images:
            return min(tokens, start), number
    return tokens, len(first.spans)


def _forward_shared(
    self: nn.Module,
    *args: Any,
    stock: Any,
    prefix_input_ids: torch.Tensor | None = None,
    prefix_attention_mask: torch.Tensor | None = None,
    prefix_position_ids: torch.Tensor | None = None,
    prefix_rows: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The core's forward in two parts; its result is that of the rows' ends.

    Args:
        prefix_input_ids, prefix_attention_mask: [P, L]; prefix_position_ids: [3, P, L].
        prefix_rows: for each row of `input_ids` the number of its beginning [B].
    """
    if prefix_input_ids is None:
        return stock(*args, **kwargs)
    if self.training and self.is_activation_checkpointing:
        raise ValueError("shared prompts need keys and values, which gradient checkpointing drops: switch one off")
    for name in ("use_cache", "past_key_values", "mm_token_type_ids"):
        kwargs.pop(name, None)
    images = encode_images(
        self, kwargs.pop("pixel_values"), kwargs.pop("image_grid_thw"), kwargs.pop("image_index", None)
    )
    image_id = self.config.image_token_id
    tokens = [len(image) for image in images.pooler_output]
    ends = torch.tensor(tokens).cumsum(0)
    in_prefix = int((ends <= int((prefix_input_ids == image_id).sum())).sum())
    beginning = stock(
        input_ids=prefix_input_ids,
        attention_mask=prefix_attention_mask,
        position_ids=prefix_position_ids,
        past_key_values=DynamicCache(),
        use_cache=True,
        mm_encoder_outputs={"image": pick_features(images, list(range(in_prefix)))} if in_prefix else None,
    )
    cache = beginning.past_key_values
    cache.batch_select_indices(prefix_rows)
    mask = torch.cat([prefix_attention_mask[prefix_rows], kwargs.pop("attention_mask")], dim=1)
    rest = list(range(in_prefix, len(tokens)))
    if rest:
        kwargs["mm_encoder_outputs"] = {"image": pick_features(images, rest)}
    return stock(*args, attention_mask=mask, past_key_values=cache, use_cache=True, **kwargs)
