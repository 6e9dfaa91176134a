"""From what the agent knows to what the model takes: prompts, frames and answers as token and pixel tensors.

Tokens and pixels equal those of `processor.apply_chat_template` and the stock processor, several times faster: every
prompt text is tokenised once, every frame is cut once, and M-RoPE positions are made here instead of row by row in
the model.

Examples:
    >>> encoder = PromptEncoder(processor, get_template("compact"), num_actions=6, space=space)   # doctest: +SKIP
    >>> query = encoder.query("go to the red sofa", [frame_0, frame_1])                           # doctest: +SKIP
    >>> model.generate(**encoder.prompts([query]), max_new_tokens=64)                             # doctest: +SKIP
    >>> collate = SFTCollator(encoder, reader=records.__getitem__)                                # doctest: +SKIP
    >>> loss = answer_loss(model, collate([{"index": [0]}, {"index": [1]}]))                      # doctest: +SKIP
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ProcessorMixin

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lvlm.checkpoint import ModelCard
from habitat_vlnr1.lvlm.fast_vision import core_of
from habitat_vlnr1.lvlm.frames import Frame, FrameCutter
from habitat_vlnr1.lvlm.plain_text import PlainText
from habitat_vlnr1.lvlm.query import Query, trunk_of
from habitat_vlnr1.prompt import PromptTemplate, get_template

# DataLoader workers are forked after the tokenizer was used; without this it warns in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

IGNORED = -100
END = "<|im_end|>"


class Example(Protocol):
    """What the collator reads: a `Record`, or anything with these three."""

    @property
    def instruction(self) -> str: ...

    @property
    def frames(self) -> Sequence[Frame]: ...

    @property
    def answer(self) -> Sequence[Action] | str: ...


@dataclass(frozen=True)
class Described:
    """An example whose answer is free text, as the vision warm-up has it."""

    instruction: str
    frames: Sequence[Frame]
    answer: str


class PromptEncoder:
    """Makes model inputs for one template, number of actions and action space.

    Args:
        processor: a Qwen-VL processor.
        template: how the question is put.
        num_actions: n, how many actions are asked for.
        space: the actions' words.
        max_pixels: the most pixels of a frame; it becomes the limit of `processor` itself, so that a checkpoint
            saved with it keeps it. None leaves the processor's own.
        single_slot: give each patch's pixels once instead of twice (`speed_up_vision` must be applied).
        cache_mb: memory for cut frames.
    """

    def __init__(
        self,
        processor: Any,
        template: PromptTemplate,
        num_actions: int,
        space: ActionSpace,
        *,
        max_pixels: int | None = None,
        single_slot: bool = False,
        cache_mb: float = 128,
    ):
        if max_pixels is not None:
            limit_pixels(processor, max_pixels)
        self.processor = processor
        self.max_pixels = max_pixels
        self.tokenizer = processor.tokenizer
        self.plain_text = PlainText(self.tokenizer)
        self.template = template
        self.num_actions = num_actions
        self.space = space
        self.single_slot = single_slot
        self.cutter = FrameCutter(processor.image_processor, cache_mb)
        self.image_token = processor.image_token
        self.image_id = processor.image_token_id
        self.end_id = self.tokenizer.convert_tokens_to_ids(END)
        pad = self.tokenizer.pad_token_id
        self.pad_id = self.end_id if pad is None else pad
        self._tokenize = functools.lru_cache(maxsize=65536)(self._tokenize_now)
        self._pieces = functools.lru_cache(maxsize=65536)(self._pieces_now)

    @classmethod
    def from_card(cls, processor: ProcessorMixin, card: ModelCard) -> PromptEncoder:
        """The encoder that asks as a checkpoint's card says, for a model with `speed_up_vision`.

        Raises:
            ValueError: there is no such template, or not one visual token fits `max_pixels`.
        """
        template = get_template(card.template)
        return cls(processor, template, card.num_actions, card.space, max_pixels=card.max_pixels, single_slot=True)

    def __getstate__(self) -> dict[str, Any]:
        """Caches stay behind when a worker process that is not forked gets a copy."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_tokenize", "_pieces")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenize = functools.lru_cache(maxsize=65536)(self._tokenize_now)
        self._pieces = functools.lru_cache(maxsize=65536)(self._pieces_now)

    def query(
        self,
        instruction: str,
        frames: Sequence[Frame],
        keys: Sequence[Hashable] | None = None,
        *,
        is_question: bool = False,
    ) -> Query:
        """The prompt for an instruction and its frames, history first, the current frame last.

        Args:
            frames: files or uint8 arrays [H, W, 3]; at least the current one.
            keys: identities of the frames, such as (rollout, step); files are their own keys.
            is_question: the instruction is a question about what was seen, to be answered in words.
        """
        if not frames:
            raise VLNR1Error("a prompt needs at least the current frame")
        keys = [f if not isinstance(f, np.ndarray) else None for f in frames] if keys is None else keys
        cut = tuple(self.cutter.cut(frame, key) for frame, key in zip(frames, keys, strict=True))
        pieces = self._pieces(instruction, len(frames) - 1, is_question)
        ids, positions, spans = self._lay_out(pieces, [patches.grid for patches in cut])
        return Query(ids, positions, cut, tuple(keys), spans)

    def answer_ids(self, answer: Sequence[Action] | str) -> tuple[int, ...]:
        """Tokens of an answer (actions in their words, or free text) with the end token, without its newline."""
        text = answer if isinstance(answer, str) else self.space.format(answer)
        return (*self._tokenize(*self.plain_text.guard(text)), self.end_id)

    def prompts(
        self, queries: Sequence[Query], device: torch.device | str = "cpu", *, single_slot: bool | None = None
    ) -> dict[str, torch.Tensor]:
        """Left-padded inputs for `generate`; `single_slot` overrides the encoder's own."""
        rows = [(query.ids, query.positions) for query in queries]
        batch = self.pad(rows, left=True)
        del batch["position_ids"]  # `generate` makes its own
        batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_id).int()
        frames = [patches for query in queries for patches in query.frames]
        single_slot = self.single_slot if single_slot is None else single_slot
        batch["pixel_values"] = self.cutter.pixel_values(frames, single_slot)
        batch["image_grid_thw"] = self.cutter.grid_thw(frames)
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def training_batch(
        self, queries: Sequence[Query], answers: Sequence[tuple[int, ...]], groups: Sequence[int] | None = None
    ) -> dict[str, torch.Tensor]:
        """Right-padded inputs with labels on the answer tokens only.

        Args:
            answers: from `answer_ids`, one per query.
            groups: a number per query, equal ones side by side. What a group's prompts have in common with one of them
                (`trunk_of`) is given once, and each distinct frame too (`share_prefixes` must be applied). None: whole
                rows.

        Returns:
            input_ids, attention_mask, labels, mm_token_type_ids [B, L]; position_ids [3, B, L]; pixel_values;
            image_grid_thw [images, 3]. With `groups`: input_ids and so on hold what follows the common beginnings;
            those are prefix_input_ids, prefix_attention_mask [P, L'], prefix_position_ids [3, P, L']; prefix_rows [B]
            tells whose is whose, prefix_lengths [B] how much of it; image_index [images] has the number of each
            image's frame.
        """
        rows = [_append(query, answer) for query, answer in zip(queries, answers, strict=True)]
        if groups is None:
            batch = self._labelled(rows, answers)
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_id).int()
            frames = [patches for query in queries for patches in query.frames]
            batch["image_grid_thw"] = self.cutter.grid_thw(frames)
            batch["pixel_values"] = self.cutter.pixel_values(frames, self.single_slot)
            return batch
        numbers = list(dict.fromkeys(groups))
        members = [[i for i, group in enumerate(groups) if group == number] for number in numbers]
        trunks = [trunk_of([queries[i] for i in group]) for group in members]
        owner = {i: p for p, group in enumerate(members) for i in group}
        common = dict(zip((i for group in members for i in group), (n for _, ns in trunks for n in ns), strict=True))
        cut = [common[i][0] for i in range(len(rows))]
        batch = self._labelled(
            [(ids[n:], positions[:, n:]) for (ids, positions), n in zip(rows, cut, strict=True)], answers
        )
        heads = [(queries[group[k]], *shared[k]) for group, (k, shared) in zip(members, trunks, strict=True)]
        prefix = self.pad([(query.ids[:n], query.positions[:, :n]) for query, n, _ in heads], left=False)
        batch |= {f"prefix_{name}": table for name, table in prefix.items()}
        batch["prefix_rows"] = torch.tensor([owner[i] for i in range(len(rows))])
        batch["prefix_lengths"] = torch.tensor(cut)
        frames = [patches for query, _, images in heads for patches in query.frames[:images]]
        frames += [patches for i, query in enumerate(queries) for patches in query.frames[common[i][1] :]]
        # Frames are told apart by their cached object: one key, one object (while it stays in the cache).
        number: dict[int, int] = {}
        batch["image_index"] = torch.tensor([number.setdefault(id(patches), len(number)) for patches in frames])
        batch["image_grid_thw"] = self.cutter.grid_thw(frames)
        distinct = list({id(patches): patches for patches in frames}.values())
        batch["pixel_values"] = self.cutter.pixel_values(distinct, self.single_slot)
        return batch

    def _labelled(
        self, rows: Sequence[tuple[np.ndarray, np.ndarray]], answers: Sequence[tuple[int, ...]]
    ) -> dict[str, torch.Tensor]:
        """Right-padded rows with labels on their last tokens, the answers."""
        batch = self.pad(rows, left=False)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for row, (ids, _), answer in zip(labels, rows, answers, strict=True):
            row[len(ids) - len(answer) : len(ids)] = torch.tensor(answer)
        batch["labels"] = labels
        return batch

    def _pieces_now(self, instruction: str, num_history: int, is_question: bool) -> tuple[tuple[int, ...], ...]:
        """Token ids of the chat text before, between and after its images."""
        instruction, mark = self.plain_text.guard(instruction)
        if is_question:
            messages = self.template.question(instruction, num_history)
        else:
            messages = self.template.messages(instruction, num_history, self.num_actions, self.space)
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        texts = text.split(self.image_token)
        if len(texts) != num_history + 2:
            raise VLNR1Error(f"the prompt has {len(texts) - 1} images for {num_history + 1} frames")
        # Special tokens are cut out before anything else, so the text beside them tokenises alone as in the whole.
        return tuple(self._tokenize(piece, mark) for piece in texts)

    def _tokenize_now(self, text: str, mark: str = "") -> tuple[int, ...]:
        return self.plain_text.ids(text, mark)

    def _lay_out(
        self, pieces: Sequence[Sequence[int]], grids: Sequence[tuple[int, int]]
    ) -> tuple[np.ndarray, np.ndarray, tuple[tuple[int, int], ...]]:
        """Token ids [L] and M-RoPE positions [3, L] of text pieces with images between them, and the images' spans.

        Text advances all three positions by one per token. An image's tokens share one time and count rows and
        columns from there; the text after it goes on from the larger of its sides.
        """
        ids: list[int] = []
        blocks: list[np.ndarray] = []
        spans: list[tuple[int, int]] = []
        start = 0
        for piece, grid in zip(pieces, [*grids, None], strict=True):
            ids.extend(piece)
            blocks.append(np.broadcast_to(np.arange(start, start + len(piece)), (3, len(piece))))
            start += len(piece)
            if grid is not None:
                height, width = (side // self.cutter.merge for side in grid)
                spans.append((len(ids), len(ids) + height * width))
                ids.extend([self.image_id] * (height * width))
                blocks.append(start + _image_positions(height, width))
                start += max(height, width)
        return np.array(ids), np.concatenate(blocks, axis=1), tuple(spans)

    def pad(self, rows: Sequence[tuple[np.ndarray, np.ndarray]], *, left: bool) -> dict[str, torch.Tensor]:
        """Rows of ids [L] and positions [3, L] as input_ids and attention_mask [B, L], position_ids [3, B, L]."""
        longest = max(len(ids) for ids, _ in rows)
        input_ids = np.full((len(rows), longest), self.pad_id)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        positions = np.zeros((3, len(rows), longest), dtype=np.int64)
        for i, (ids, places) in enumerate(rows):
            span = slice(longest - len(ids), None) if left else slice(len(ids))
            input_ids[i, span] = ids
            mask[i, span] = 1
            positions[:, i, span] = places
        tables = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}
        return {name: torch.from_numpy(table) for name, table in tables.items()}


class SFTCollator:
    """Turns rows of a dataset into training batches; give it to TRL's `SFTTrainer` or a `DataLoader`.

    A row names one or several records, `{"index": [7, 8, 9]}`. Where a row has several, the common beginning of
    their prompts is given once (`share_prefixes` must be applied). Works in forked DataLoader workers; each process
    keeps the frames it has cut (`PromptEncoder(cache_mb=…)`).

    Args:
        encoder: makes the inputs.
        reader: from a record's number to an `Example`, for instance `records.__getitem__`.
    """

    def __init__(self, encoder: PromptEncoder, reader: Callable[[int], Example]):
        self.encoder = encoder
        self.reader = reader

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        groups = [number for number, row in enumerate(rows) for _ in row["index"]]
        examples = [self.reader(index) for row in rows for index in row["index"]]
        queries = [
            self.encoder.query(example.instruction, example.frames, is_question=getattr(example, "is_question", False))
            for example in examples
        ]
        answers = [self.encoder.answer_ids(example.answer) for example in examples]
        return self.encoder.training_batch(queries, answers, groups if len(groups) > len(rows) else None)


def answer_loss(model: Any, batch: Mapping[str, torch.Tensor], *, with_hits: bool = False) -> Any:
    """Mean cross entropy over the answer tokens (eq. 7), with logits made for those tokens alone.

    Equals `model(**batch).loss`.

    Args:
        with_hits: also return, per answer token, whether it is the model's likeliest, bool [tokens].
    """
    logits, labels, _ = answer_logits(model, batch)
    loss = F.cross_entropy(logits, labels)
    return (loss, logits.detach().argmax(-1) == labels) if with_hits else loss


def answer_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of all answer tokens the logits, float32 [tokens, V], the labels [tokens], and the rows they are in [tokens].

    For whole rows the attention mask is left out: behind right padding, causal attention never reaches the padded
    places from an answer.
    """
    left_out = {"labels"} if "prefix_rows" in batch else {"labels", "attention_mask"}
    inputs = {name: value for name, value in batch.items() if name not in left_out}
    hidden = core_of(model)(**inputs, use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    rows, places = (labels != IGNORED).nonzero(as_tuple=True)
    return model.get_output_embeddings()(hidden[rows, places]).float(), labels[rows, places], rows


def limit_pixels(processor: ProcessorMixin, max_pixels: int) -> None:
    """Make `max_pixels` the largest frame that the processor gives to the model."""
    images = processor.image_processor
    cell = (images.patch_size * images.merge_size) ** 2
    if max_pixels < cell:
        raise VLNR1Error(f"max_pixels must be at least one visual token, {cell} pixels, got {max_pixels}")
    images.size = {"shortest_edge": min(images.size["shortest_edge"], max_pixels), "longest_edge": max_pixels}


def _append(query: Query, answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    start = query.positions.max() + 1
    places = np.broadcast_to(np.arange(start, start + len(answer)), (3, len(answer)))
    return np.concatenate([query.ids, np.array(answer)]), np.concatenate([query.positions, places], axis=1)


@functools.lru_cache(maxsize=256)
def _image_positions(height: int, width: int) -> np.ndarray:
    """Time, row and column [3, height*width] of an image's merged tokens."""
    rows, columns = np.divmod(np.arange(height * width), width)
    return np.stack([np.zeros_like(rows), rows, columns])
