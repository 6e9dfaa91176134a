"""Prompts with a common beginning, run once: the steps of an episode, or the answers of a group.

The steps of an episode begin with the same instruction and the same first frame; the G answers of a GRPO group have
the whole prompt in common. A batch can hold the common beginning of each group of rows once
(`PromptEncoder.training_batch(groups=…)`), and of each row only its end. The beginnings go through the model first;
their keys and values then stand before the rows that share them. Hidden states, losses and gradients are those of
whole rows, up to rounding.

Examples:
    >>> share_prefixes(model)                                                               # doctest: +SKIP
    >>> model(**encoder.training_batch(queries, answers, groups=[0, 0, 0, 1, 1, 1])).loss   # doctest: +SKIP
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lvlm.fast_vision import core_of, encode_images, pick_features, speed_up_vision


def share_prefixes(model: PreTrainedModel) -> None:
    """Teach the model, in place, batches with `prefix_input_ids`; others go through as before.

    As in `speed_up_vision`, which is applied too, only the core's `forward` is replaced.
    """
    speed_up_vision(model)
    core = core_of(model)
    if not getattr(core, "vlnr1_shares_prefixes", False):
        core.forward = types.MethodType(functools.partial(_forward_shared, stock=core.forward), core)
        core.vlnr1_shares_prefixes = True


def _forward_shared(
    self: Any,
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
    assert prefix_attention_mask is not None and prefix_rows is not None
    if self.training and self.is_activation_checkpointing:
        raise VLNR1Error("shared prompts need keys and values, which gradient checkpointing drops: switch one off")
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
