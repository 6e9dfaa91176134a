"""Prompts with a common beginning, run once: the steps of an episode, or the answers of a group.

The steps of an episode begin with the same instruction and the same first frames; the G answers of a GRPO group have
the whole prompt in common. A batch can hold the beginning of each group of rows once
(`PromptEncoder.training_batch(groups=…)`), and of each row only what follows where it branches off. The beginnings go
through the model first; their keys and values, as far as a row shares them, then stand before it. Rows of very
different lengths run one after another, each beside its like, instead of padded to the longest (not under ZeRO-3,
where all processes must make the same passes). Hidden states, losses and gradients are those of whole rows, up to
rounding.

Examples:
    >>> share_prefixes(model)                                                               # doctest: +SKIP
    >>> model(**encoder.training_batch(queries, answers, groups=[0, 0, 0, 1, 1, 1])).loss   # doctest: +SKIP
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
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
    prefix_lengths: torch.Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The core's forward in two parts; its result is that of the rows' ends.

    Args:
        prefix_input_ids, prefix_attention_mask: [P, L]; prefix_position_ids: [3, P, L].
        prefix_rows: for each row of `input_ids` the number of its beginning [B].
        prefix_lengths: how many of that one's tokens come before the row [B].
    """
    if prefix_input_ids is None:
        return stock(*args, **kwargs)
    assert prefix_attention_mask is not None and prefix_rows is not None and prefix_lengths is not None
    if self.training and self.is_activation_checkpointing:
        raise VLNR1Error("shared prompts need keys and values, which gradient checkpointing drops: switch one off")
    for name in ("use_cache", "past_key_values", "mm_token_type_ids", "mm_encoder_outputs"):
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
    rest = _images_of_rows(kwargs["input_ids"] == image_id, tokens, in_prefix)
    places = torch.arange(prefix_input_ids.shape[1], device=prefix_lengths.device)
    before = (places < prefix_lengths[:, None]).to(prefix_attention_mask)
    alike = any(hasattr(parameter, "ds_id") for parameter in self.parameters())  # parted by ZeRO-3

    def run(part: list[int], rows: dict[str, torch.Tensor]) -> Any:
        shown = [image for row in part for image in rest[row]]
        return stock(
            *args,
            input_ids=rows["input_ids"],
            attention_mask=torch.cat([before[part], rows["attention_mask"]], dim=1),
            position_ids=rows["position_ids"],
            past_key_values=_cache_of(beginning.past_key_values, prefix_rows[part]),
            use_cache=True,
            mm_encoder_outputs={"image": pick_features(images, shown)} if shown else None,
            **kwargs,
        )

    rows = {name: kwargs.pop(name) for name in ("input_ids", "attention_mask", "position_ids")}
    return _in_parts(run, rows, together=alike)


def _in_parts(
    run: Callable[[list[int], dict[str, torch.Tensor]], Any], rows: dict[str, torch.Tensor], together: bool
) -> Any:
    """Run rows beside their like, and put their hidden states together again.

    Args:
        run: of the numbers of some rows, and these rows, cut to the longest of them.
        rows: `input_ids` and `attention_mask` [B, L], filled up on the right; `position_ids` [3, B, L].
        together: all at once.
    """
    lengths = rows["attention_mask"].sum(1)
    hidden: list[tuple[int, torch.Tensor]] = []
    out: Any = None
    for part in [list(range(len(lengths)))] if together else parts_of(lengths):
        longest = int(lengths[part].max())
        out = run(part, {name: values[..., part, :longest] for name, values in rows.items()})
        padded = F.pad(out.last_hidden_state, (0, 0, 0, rows["input_ids"].shape[1] - longest))
        hidden += zip(part, padded, strict=True)
    out.last_hidden_state = torch.stack([states for _, states in sorted(hidden, key=lambda pair: pair[0])])
    return out


def parts_of(lengths: torch.Tensor) -> list[list[int]]:
    """Rows that run together, the longest first: none is filled up by more than half of its own length.

    Prompts of a walk grow with their histories, so that rows padded to the longest are a third padding.

    Args:
        lengths: of the rows in tokens [B].
    """
    sizes = lengths.tolist()
    parts: list[list[int]] = []
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        if not parts or sizes[row] * 1.5 < sizes[parts[-1][0]]:
            parts.append([])
        parts[-1].append(row)
    return parts


def _images_of_rows(places: torch.Tensor, tokens: list[int], first: int) -> list[list[int]]:
    """The numbers of the images in each row.

    Args:
        places: where rows have tokens of images, bool [B, L].
        tokens: of every image.
        first: the first image that is not in a beginning.
    """
    rows: list[list[int]] = []
    for count in places.sum(1).tolist():
        rows.append([])
        while count > 0:
            rows[-1].append(first)
            count -= tokens[first]
            first += 1
    return rows


def _cache_of(beginnings: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """The keys and values of these rows' beginnings."""
    layers: Any = beginnings.layers  # more than their annotations promise, where every layer is a plain one
    return DynamicCache(ddp_cache_data=[(layer.keys[rows], layer.values[rows]) for layer in layers])
