"""The vision warm-up of a tiny model: it learns to say what a frame shows, before it learns to walk.

A real Qwen2-VL knows from its pretraining what a red sofa is. A randomly initialised model does not, and the action
labels of a few thousand steps hardly teach it. So it first answers, for frames of the training episodes, the
question "Describe." with the description that the export wrote beside each frame, in the same chat layout (template,
history frames) in which it is asked for actions later.

Examples:
    >>> losses = warm_up(model, encoder, records, steps=400, learning_rate=2e-3)          # doctest: +SKIP

Nothing is written here: save the model when it returns, and an interrupted warm-up starts over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel

from habitat_vlnr1.errors import CheckpointError, VLNR1Error
from habitat_vlnr1.lvlm.inputs import Described, PromptEncoder, SFTCollator, answer_loss
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.records import Record, Records

QUESTION = "Describe."


def warm_up(
    model: PreTrainedModel,
    encoder: PromptEncoder,
    records: Records,
    *,
    steps: int,
    batch_size: int = 4,
    steps_per_row: int = 8,
    learning_rate: float = 2e-3,
    warmup_fraction: float = 0.05,
    workers: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train `model` in place to describe the current frame of each record.

    Args:
        model: a small model on its device; `share_prefixes` and with it `speed_up_vision` are applied to it.
        encoder: with the template that is used for navigation later.
        records: training records; those of episodes without descriptions are left out.
        steps: optimiser steps; records seen = at most steps * batch_size * steps_per_row.
        batch_size: rows per step.
        steps_per_row: records of one episode that share a row (see `Records.rows`).
        learning_rate: the peak, after a linear rise over `warmup_fraction` of the steps; then a cosine to zero.
        workers: processes that read frames; 0 reads in this one.
        seed: of the order of the rows.

    Returns:
        The loss (mean cross entropy per answer token) of every step.

    Raises:
        ValueError: no record has a description.
        CheckpointError: loss or gradient are no longer finite.
    """
    rows = records.rows(steps_per_row, lambda episode, step: bool(episode.descriptions))
    if not rows:
        raise VLNR1Error(
            "the vision warm-up needs descriptions, and no episode has any: export with "
            "vlnr1.export.describe=true, or switch the warm-up off"
        )
    share_prefixes(model)
    loader: DataLoader = DataLoader(
        _endless(rows, steps * batch_size, seed),  # type: ignore[arg-type]  # torch asks for no more than a sequence
        batch_size=batch_size,
        collate_fn=SFTCollator(encoder, lambda index: describe(records[index])),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    lesson = Lesson("vision warm-up", "vlnr1.model.build.warmup.learning_rate", steps, learning_rate, warmup_fraction)
    return learn(model, loader, answer_loss, lesson, progress)


@dataclass(frozen=True)
class Lesson:
    """How long and how fast something is learned.

    Args:
        name: for the progress bar and errors.
        key: the config key of the learning rate.
        steps: optimiser steps.
        learning_rate: the peak, after a linear rise over `warmup_fraction` of the steps; then a cosine to zero.
        warmup_fraction: of the steps.
    """

    name: str
    key: str
    steps: int
    learning_rate: float
    warmup_fraction: float = 0.05


def learn(
    model: PreTrainedModel,
    batches: Iterable[dict[str, torch.Tensor]],
    loss_of: Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor],
    lesson: Lesson,
    progress: bool = True,
) -> list[float]:
    """Train `model` in place with AdamW, one step a batch; returns the loss of every step.

    Raises:
        CheckpointError: loss or gradient are no longer finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lesson.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rise_and_fall(step, lesson.steps, lesson.warmup_fraction)
    )
    device = next(model.parameters()).device
    losses: list[float] = []
    model.train()
    bar = tqdm(batches, total=lesson.steps, desc=lesson.name, disable=not progress)
    for batch in bar:
        loss = loss_of(model, {name: tensor.to(device) for name, tensor in batch.items()})
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        losses.append(loss.item())
        if not math.isfinite(losses[-1] + norm.item()):
            raise CheckpointError(
                f"{lesson.name}, step {len(losses)}: loss {losses[-1]:g}, gradient norm {norm.item():g}: it has "
                f"diverged and stops, nothing is saved. A lower {lesson.key} may help"
            )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{sum(losses[-25:]) / len(losses[-25:]):.3f}", refresh=False)
    model.eval()
    return losses


def describe(record: Record) -> Described:
    """A record as a question about its current frame."""
    return Described(QUESTION, record.frames, record.episode.descriptions[record.step].partition("\n")[0])


def rise_and_fall(step: int, steps: int, rise: float) -> float:
    """Factor of the learning rate: linear up over the fraction `rise`, then half a cosine down to zero."""
    start = max(1, round(steps * rise))
    if step < start:
        return (step + 1) / start
    return 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))


def _endless(rows: Sequence[list[int]], total: int, seed: int) -> list[dict[str, list[int]]]:
    """`total` rows of a dataset: the given ones in a new random order each time around."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-total // len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(rounds)])[:total]
    return [{"index": rows[i]} for i in order.tolist()]
