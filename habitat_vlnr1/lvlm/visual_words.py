"""The first lesson of a tiny model: each visual token says, in words, what its part of the frame shows.

A real Qwen2-VL's vision tower has seen a billion pictures. A randomly initialised one learns colours and shapes late
from action labels, and even from whole descriptions, since the language model must first find out where to look. Here
each visual token is asked by itself, through the model's own output embedding: cross entropy to the words of its cell,
which the export wrote beside each frame. The embedding is also that of the input, so a token that shows a red sofa
comes to lie near "red" and "sofa", where the instruction's words find it. The language model does not run: a frame
costs a fifth of describing it.

Examples:
    >>> losses = teach_words(model, encoder, records, steps=300)                          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lvlm.fast_vision import core_of, encode_frames, speed_up_vision
from habitat_vlnr1.lvlm.frames import Frame
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.warmup import Lesson, learn
from habitat_vlnr1.records import Records

REMEDY = (
    "delete the exported folder and export again with vlnr1.export.describe=true and "
    "vlnr1.extra_sensors.vlnr1_description.cells=<visual tokens of a frame's side>, or switch this off with "
    "vlnr1.model.build.warmup.words=null"
)


def teach_words(
    model: PreTrainedModel,
    encoder: PromptEncoder,
    records: Records,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> list[float]:
    """Train vision tower and embeddings of `model` in place.

    Args:
        model: a small model on its device, with tied embeddings; `speed_up_vision` is applied to it.
        encoder: cuts the frames.
        records: training records; episodes without cells (`Episode.cells`) are left out.
        steps: optimiser steps.
        batch_size: frames per step, drawn without regard to their episodes.
        learning_rate: the peak (see `warmup.learn`).
        seed: of the order of the frames.

    Returns:
        The loss (mean cross entropy per visual token that has words) of every step.

    Raises:
        VLNR1Error: no episode has cells, or a frame has another number of visual tokens.
        CheckpointError: loss or gradient are no longer finite.
    """
    places = [(episode, step) for episode in records.episodes if episode.cells(0) for step in episode.steps]
    if not places:
        raise VLNR1Error(f"visual words need frames described cell by cell, and no episode has any: {REMEDY}")
    speed_up_vision(model)
    roots = {id(episode): ego.root for ego in records.sources for episode in ego.episodes}
    words = WordTargets(encoder, model.config.get_text_config().vocab_size)

    def batches() -> Iterator[dict[str, Tensor]]:
        for chosen in in_random_order(len(places), steps, batch_size, seed):
            part = [places[i] for i in chosen]
            frames = [roots[id(episode)] / episode.frame(step) for episode, step in part]
            yield words.batch(frames, [episode.cells(step) for episode, step in part])

    lesson = Lesson("visual words", "vlnr1.model.build.warmup.words.learning_rate", steps, learning_rate)
    return learn(model, batches(), word_loss, lesson, progress)


class WordTargets:
    """Frames and the words of their cells as tensors.

    Args:
        encoder: cuts the frames and knows the tokens.
        vocabulary: number of columns of the model's logits.
    """

    def __init__(self, encoder: PromptEncoder, vocabulary: int):
        self.encoder = encoder
        self.vocabulary = vocabulary
        self._known: dict[str, Tensor] = {}

    def batch(self, frames: Sequence[Frame], cells: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """`pixel_values`, `image_grid_thw`, and `words` [frames, tokens, V]: of each visual token's words equal shares
        that sum to 1, or zeros where it has none.

        Args:
            cells: of each frame the texts of its visual tokens, row by row.
        """
        cut = [self.encoder.cutter.cut(frame) for frame in frames]
        for frame, patches, texts in zip(frames, cut, cells, strict=True):
            tokens = self.encoder.cutter.tokens(patches.grid)
            if tokens != len(texts):
                raise VLNR1Error(
                    f"{frame}: described in {len(texts)} cells, but it has {tokens} visual tokens: export with as "
                    "many cells (vlnr1.extra_sensors.vlnr1_description.cells), change vlnr1.model.image_size, or "
                    "switch visual words off with vlnr1.model.build.warmup.words=null"
                )
        return {
            "pixel_values": self.encoder.cutter.pixel_values(cut, single_slot=True),
            "image_grid_thw": self.encoder.cutter.grid_thw(cut),
            "words": torch.stack([torch.stack([self._shares(text) for text in texts]) for texts in cells]),
        }

    def _shares(self, text: str) -> Tensor:
        if text not in self._known:
            # A space before each part: words are tokens as they stand inside a sentence.
            parts = [f" {part}" for part in text.split(", ") if part]
            ids = [token for part in parts for token in self.encoder.plain_text.ids(part, "")]
            shares = torch.zeros(self.vocabulary)
            for token in ids:
                shares[token] += 1 / len(ids)
            self._known[text] = shares
        return self._known[text]


def word_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean over the visual tokens that have words of the cross entropy to their shares; see `WordTargets.batch`."""
    features = encode_frames(core_of(model), batch["pixel_values"], batch["image_grid_thw"])
    logits = model.get_output_embeddings()(torch.cat(tuple(features.pooler_output))).float()
    words = batch["words"].flatten(0, 1)
    return -(words * F.log_softmax(logits, dim=-1)).sum() / (words.sum(-1) > 0).sum().clamp(min=1)


def in_random_order(count: int, batches: int, size: int, seed: int) -> Iterator[list[int]]:
    """So many batches of numbers below `count`, all of them in a new random order each time around."""
    generator = torch.Generator().manual_seed(seed)
    left: list[int] = []
    for _ in range(batches):
        while len(left) < size:
            left += torch.randperm(count, generator=generator).tolist()
        batch, left = left[:size], left[size:]
        yield batch
