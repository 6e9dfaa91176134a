"""From prompts to actions: decide the letters, append the determined words in the same forward pass.

An answer of n actions takes n forward passes (the prompt, then n - 1 times the chosen letter with the words behind
it) where token-by-token generation takes 54 with Qwen's tokenizer and n = 6. The result is that of greedy `generate`
under the same grammar. Features of frames are kept by the frames' keys, so a frame is encoded once in its life, not
once for every prompt in which it is history.

Examples:
    >>> decoder = load_decoder("data/vlnr1/quickstart/checkpoints/checkpoint-2600")  # doctest: +SKIP
    >>> prompt = Prompt("go to the red sofa", [frame_0, frame_1], [(7, 0), (7, 1)])  # doctest: +SKIP
    >>> (answer,) = decoder.decode([prompt])  # doctest: +SKIP
    >>> answer.actions, answer.text  # doctest: +SKIP
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from habitat_vlnr1.actions import Action, read_letters
from habitat_vlnr1.errors import CheckpointError, VLNR1Error
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.fast_vision import core_of, encode_frames, speed_up_vision
from habitat_vlnr1.lvlm.frames import Frame, Patches
from habitat_vlnr1.lvlm.grammar import ACTIONS, AnswerGrammar, Tokens, read_grammar
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.letters import letter_logits
from habitat_vlnr1.lvlm.query import Query
from habitat_vlnr1.weights import folder_fingerprint

Seed = int | Sequence[int]


@dataclass(frozen=True)
class Prompt:
    """What the model is asked.

    Args:
        instruction: what the agent was told.
        frames: uint8 arrays [H, W, 3] or files; history in order of time, then the current frame.
        keys: an identity per frame, such as (rollout, step), by which its features are kept; None keeps nothing.
    """

    instruction: str
    frames: Sequence[Frame]
    keys: Sequence[Hashable] | None = None


@dataclass(frozen=True)
class Answer:
    """What the model answered.

    Args:
        actions: n actions; where a free answer could not be read, STOP alone.
        text: the answer's words.
        log_probs: of each action among the four letters (at the sampling temperature; at 1 when greedy); 0 for a
            STOP that a STOP before it determines. Empty for free answers.
        ids: token ids of the answer with the end token.
        decided: which of `ids` the model chose; the others are determined by the grammar.
        valid: whether the text keeps to the grammar; always true for constrained decoding.
    """

    actions: tuple[Action, ...]
    text: str
    log_probs: tuple[float, ...]
    ids: tuple[int, ...]
    decided: tuple[bool, ...]
    valid: bool = True


class ActionDecoder:
    """Asks a model for actions.

    Args:
        model: a Qwen-VL on its device; the exact speed-ups of `fast_vision` are applied to it.
        encoder: makes the inputs; it knows template, number of actions and action space.
        temperature: 0 takes the likeliest letter, else letters are sampled.
        constrained: decide letters under the grammar; False generates text freely and reads it.
        stop_is_final: after STOP only STOP follows, as in every expert's answer.
        lenient: for free answers, read the letters alone when words or number of actions differ.
        batch_size: the most prompts in one forward pass.
        cache_mb: memory for frame features; the least recently used go first.
        seed: of the sampling.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: PromptEncoder,
        *,
        temperature: float = 0.0,
        constrained: bool = True,
        stop_is_final: bool = True,
        lenient: bool = True,
        batch_size: int = 32,
        cache_mb: float = 256,
        seed: int = 0,
    ):
        if temperature < 0:
            raise VLNR1Error(f"temperature must be 0 (greedy) or positive, got {temperature}")
        speed_up_vision(model)
        self.model = model
        self.encoder = encoder
        self.num_actions = encoder.num_actions
        self.temperature = temperature
        self.constrained = constrained
        self.stop_is_final = stop_is_final
        self.lenient = lenient
        self.batch_size = batch_size
        self._grammar = (
            read_grammar(encoder.tokenizer, encoder.space, self.num_actions, encoder.end_id) if constrained else None
        )
        self._features = FeatureCache(model, encoder, cache_mb)
        self.seed = seed
        self._chance = torch.Generator().manual_seed(seed)

    @property
    def identity(self) -> dict[str, Any]:
        """What a result should say about how the model was asked."""
        return {
            "temperature": self.temperature,
            "constrained": self.constrained,
            "stop_is_final": self.stop_is_final,
            "template": self.encoder.template.name,
            "max_pixels": self.encoder.max_pixels,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            **({"seed": self.seed} if self.temperature else {}),
        }

    @property
    def grammar(self) -> AnswerGrammar:
        """Of constrained answers."""
        assert self._grammar is not None, "free answers have no grammar"
        return self._grammar

    def forget(self) -> None:
        """Drop the kept frame features; needed after the model's weights have changed."""
        self._features.clear()

    @torch.inference_mode()
    def decode(
        self,
        prompts: Sequence[Prompt],
        samples: int = 1,
        seeds: Sequence[Seed] | None = None,
        *,
        greedy: bool = False,
    ) -> list[Answer]:
        """One answer per prompt, or `samples` of each, those of one prompt side by side.

        The prompt is run once for all its samples.

        Args:
            seeds: one per answer, which alone decides what is drawn for it, whatever else is in the batch; without
                them the decoder's own generator draws. For constrained answers.
            greedy: take the likeliest letters, whatever the temperature. For constrained answers.
        """
        answers: list[Answer] = []
        for start in range(0, len(prompts), self.batch_size):
            part = prompts[start : start + self.batch_size]
            queries = [self.encoder.query(prompt.instruction, prompt.frames, prompt.keys) for prompt in part]
            if self.constrained:
                own = None if seeds is None else seeds[start * samples : (start + len(part)) * samples]
                answers += self._constrained(queries, samples, own, greedy)
            else:
                answers += self._free(queries, samples)
        return answers

    def _constrained(
        self, queries: Sequence[Query], samples: int, seeds: Sequence[Seed] | None, greedy: bool
    ) -> list[Answer]:
        run = _Run(self.model, self.encoder, queries, self._features.of(queries), samples)
        rows = [_Row() for _ in range(len(queries) * samples)]
        noise = self._noise(len(rows), seeds) if self.temperature and not greedy else None
        for step in range(self.num_actions):
            if all(self._stopped(row) for row in rows):
                break
            if step:
                run.feed([self._last_words(row) for row in rows])
            choices = [self.grammar.choices(row.last) for row in rows]
            logits = letter_logits(run.head, run.hidden, choices).cpu()
            chosen, log_probs = self._choose(logits, None if noise is None else noise[:, step])
            for row, action, log_prob in zip(rows, chosen, log_probs, strict=True):
                if not self._stopped(row):
                    row.actions.append(ACTIONS[action])
                    row.log_probs.append(log_prob)
        return [self._answer(row) for row in rows]

    def _stopped(self, row: _Row) -> bool:
        return self.stop_is_final and row.last is Action.STOP

    def _last_words(self, row: _Row) -> Tokens:
        """The last decision's token with the determined ones behind it, up to the next decision."""
        previous = row.actions[-2] if len(row.actions) > 1 else None
        last = row.actions[-1]
        return (self.grammar.choices(previous)[last], *self.grammar.between[last])

    def _noise(self, rows: int, seeds: Sequence[Seed] | None) -> Tensor:
        """Gumbel noise [rows, n, 4]: the largest sum of log-probability and noise is a draw from the distribution."""
        shape = (self.num_actions, len(ACTIONS))
        if seeds is None:
            uniform = torch.rand(rows, *shape, generator=self._chance).clamp_(1e-9, 1 - 1e-7)
            return -(-uniform.log()).log()
        return torch.from_numpy(np.stack([np.random.default_rng(seed).gumbel(size=shape) for seed in seeds])).float()

    def _choose(self, four: Tensor, noise: Tensor | None) -> tuple[list[int], list[float]]:
        """For each row one of its four letters, by number, and its log-probability among them; `four` are logits."""
        if not four.isfinite().all():  # else NaN would be the likeliest of all, and a STOP
            raise CheckpointError(checkpoint.why_not_finite(self.model))
        log_probs = torch.log_softmax(four / (self.temperature or 1.0), dim=-1)
        chosen = (four if noise is None else log_probs + noise).argmax(-1, keepdim=True)
        return chosen[:, 0].tolist(), log_probs.gather(1, chosen)[:, 0].tolist()

    def _answer(self, row: _Row) -> Answer:
        made = len(row.actions)
        determined = self.num_actions - made  # STOPs behind a STOP
        actions = (*row.actions, *[Action.STOP] * determined)
        ids, letters = self.grammar.tokens(actions)
        count = 0
        decided = []
        for letter in letters:
            count += letter
            decided.append(letter and count <= made)
        text = self.encoder.space.format(actions)
        return Answer(actions, text, (*row.log_probs, *[0.0] * determined), ids, tuple(decided))

    def _free(self, queries: Sequence[Query], samples: int) -> list[Answer]:
        """Stock `generate`, then the parser; up to twice the longest answer's tokens."""
        encoder = self.encoder
        longest = max(len(encoder.answer_ids([action] * self.num_actions)) for action in ACTIONS)
        sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        batch = encoder.prompts(queries, self.model.device, single_slot=True)
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self._chance)))
            finite = _Finite()
            model: Any = self.model  # PreTrainedModel alone has no `generate`
            out = model.generate(
                **batch,
                max_new_tokens=2 * longest,
                num_return_sequences=samples,
                eos_token_id=encoder.end_id,
                pad_token_id=encoder.pad_id,
                logits_processor=LogitsProcessorList([finite]),
                **(sampling if self.temperature else {"do_sample": False}),
            )
        if finite.broken:
            raise CheckpointError(checkpoint.why_not_finite(self.model))
        return [self._read(row) for row in out[:, batch["input_ids"].shape[1] :].tolist()]

    def _read(self, ids: list[int]) -> Answer:
        end = self.encoder.end_id
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        text = self.encoder.tokenizer.decode([token for token in ids if token != end])
        actions = self.encoder.space.parse(text, self.num_actions)
        valid = actions is not None
        if actions is None:
            letters = read_letters(text)[: self.num_actions] if self.lenient else ()
            padding = [Action.STOP] * (self.num_actions - len(letters))
            actions = (*letters, *padding) if letters else (Action.STOP,)
        return Answer(actions, text, (), tuple(ids), (True,) * len(ids), valid)


class _Finite(LogitsProcessor):
    """Notes NaN and infinity among the scores of `generate`, which goes on: looking at them waits for the device."""

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    @property
    def broken(self) -> bool:
        return self._broken is not None and bool(self._broken)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        now = (scores.isnan() | scores.isposinf()).any()  # minus infinity is how `generate` rules a token out
        self._broken = now if self._broken is None else self._broken | now
        return scores.nan_to_num(nan=0.0, neginf=-math.inf)


def load_decoder(
    path: str | os.PathLike[str],
    card: checkpoint.ModelCard | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
    **options: Any,
) -> ActionDecoder:
    """Load a checkpoint and make what asks it. Decoders of one checkpoint share its model while one of them lives.

    Args:
        path: a folder or a Hugging Face id.
        card: how to ask; None: as the checkpoint's own `vlnr1.json` says.
        dtype, attn_implementation: as `checkpoint.load` takes them.
        device: None: the process's current GPU where there is one.
        options: of `ActionDecoder`, such as `temperature`.

    Raises:
        CheckpointError: it cannot be loaded, or has no card and none is given.
    """
    path = checkpoint.existing(path)
    card = checkpoint.read_card(path) if card is None else card
    if card is None:
        raise CheckpointError(
            f"{path}: no {checkpoint.CARD_FILE} says how this model is asked: give load_decoder a ModelCard"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: Any  # `to` of PreTrainedModel is wrapped without its types
    model, processor = _shared(path, dtype, attn_implementation)
    return ActionDecoder(model.to(device), PromptEncoder.from_card(processor, card), **options)


_MODELS: WeakValueDictionary[tuple[str, ...], PreTrainedModel] = WeakValueDictionary()
_PROCESSORS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()
"""What decoders hold: models by checkpoint, weights, dtype and attention, and the processors that came with them."""


def _shared(path: str, dtype: str | torch.dtype, attention: str | None) -> tuple[PreTrainedModel, Any]:
    """A model that only decoders know, and a processor of its own for each."""
    key = (path, str(dtype), str(attention), json.dumps(folder_fingerprint(path)))
    model = _MODELS.get(key)
    if model is None:
        model, processor = checkpoint.load(path, dtype=dtype, attn_implementation=attention)
        _MODELS[key], _PROCESSORS[model] = model, processor
    return model, copy.deepcopy(_PROCESSORS[model])


@dataclass
class _Row:
    """The decisions made so far for one answer."""

    actions: list[Action] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    @property
    def last(self) -> Action | None:
        return self.actions[-1] if self.actions else None


class _Run:
    """Forward passes over a batch of rows of unequal length, on one growing key-value cache.

    Rows are padded on the right and padding stays in the cache, masked; M-RoPE positions are given explicitly, so
    a row does not notice it. `hidden` [rows, width] is what the head would get behind the last token of each row.
    """

    hidden: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: PromptEncoder,
        queries: Sequence[Query],
        features: Any,
        samples: int,
    ):
        self.core = core_of(model)
        self.head = model.get_output_embeddings()
        self.device = model.device
        self.encoder = encoder
        self.cache: Any = None
        self.mask = torch.zeros(len(queries), 0, dtype=torch.long, device=self.device)
        self._forward([(query.ids, query.positions) for query in queries], mm_encoder_outputs={"image": features})
        self.next = [int(query.positions.max()) + 1 for query in queries for _ in range(samples)]
        if samples > 1:
            self._repeat(samples)

    def _repeat(self, samples: int) -> None:
        self.cache.batch_repeat_interleave(samples)
        self.mask = self.mask.repeat_interleave(samples, dim=0)
        self.hidden = self.hidden.repeat_interleave(samples, dim=0)

    def feed(self, tokens: Sequence[Tokens]) -> None:
        """Append text tokens to each row."""
        starts = zip(self.next, tokens, strict=True)
        spans = [(np.array(ids), np.tile(np.arange(start, start + len(ids)), (3, 1))) for start, ids in starts]
        self._forward(spans)
        self.next = [start + len(ids) for start, ids in zip(self.next, tokens, strict=True)]

    def _forward(self, spans: Sequence[tuple[np.ndarray, np.ndarray]], **options: Any) -> None:
        batch = {name: table.to(self.device) for name, table in self.encoder.pad(spans, left=False).items()}
        self.mask = torch.cat([self.mask, batch["attention_mask"]], dim=1)
        out = self.core(
            input_ids=batch["input_ids"],
            attention_mask=self.mask,
            position_ids=batch["position_ids"],
            past_key_values=self.cache,
            use_cache=True,
            **options,
        )
        self.cache = out.past_key_values
        last = batch["attention_mask"].sum(1) - 1
        self.hidden = out.last_hidden_state[torch.arange(len(spans), device=self.device), last]


class FeatureCache:
    """Vision features of frames by key, in at most `cache_mb` of memory, on the model's device."""

    def __init__(self, model: PreTrainedModel, encoder: PromptEncoder, cache_mb: float):
        self.core = core_of(model)
        self.cutter = encoder.cutter
        self.capacity = int(cache_mb * 2**20)
        self._kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()
        self._size = 0

    def clear(self) -> None:
        self._kept.clear()
        self._size = 0

    def of(self, queries: Sequence[Query]) -> Any:
        """Features of all images of the queries, in their order, as the model takes them (`mm_encoder_outputs`)."""
        frames = [frame for query in queries for frame in query.frames]
        keys = [key for query in queries for key in query.keys]
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
