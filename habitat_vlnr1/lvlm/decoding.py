"""From prompts to actions: decide the letters, append the determined words in the same forward pass.

Token-by-token generation takes 54 forward passes for an answer with Qwen's tokenizer and n = 6; with the determined
words appended n are left, and with drafts (`drafts.py`) one or two. A pass runs only what is new: frames are encoded
once in their life (`feature_cache.py`), and of a prompt that begins like the last one of its stream only the rest is
run (`prefix_cache.py`). The result is that of greedy `generate` under the same grammar, log-probabilities up to
rounding. In bfloat16 that rounding is coarse: two letters that are nearly equally likely may change places with what
stands beside a prompt in its batch, as in any batched decoding, and with where a prompt was cut.

Examples:
    >>> decoder = load_decoder("data/vlnr1/quickstart/checkpoints/checkpoint-4500")  # doctest: +SKIP
    >>> prompt = Prompt("go to the red sofa", [frame_0, frame_1], [(7, 0), (7, 1)], stream=7)  # doctest: +SKIP
    >>> (answer,) = decoder.decode([prompt])  # doctest: +SKIP
    >>> answer.actions, answer.text  # doctest: +SKIP
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from habitat_vlnr1.actions import Action
from habitat_vlnr1.errors import CheckpointError, VLNR1Error
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.drafts import Path, choose_drafts, paths_from, paths_of
from habitat_vlnr1.lvlm.fast_vision import speed_up_vision
from habitat_vlnr1.lvlm.feature_cache import FeatureCache
from habitat_vlnr1.lvlm.frames import Frame
from habitat_vlnr1.lvlm.grammar import ACTIONS, AnswerGrammar, read_grammar
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.passes import Passes
from habitat_vlnr1.lvlm.prefix_cache import PrefixCache
from habitat_vlnr1.lvlm.query import Query

Seed = int | Sequence[int]


@dataclass(frozen=True)
class Prompt:
    """What the model is asked.

    Args:
        instruction: what the agent was told.
        frames: uint8 arrays [H, W, 3] or files; history in order of time, then the current frame.
        keys: an identity per frame, such as (rollout, step), by which its features are kept; None keeps nothing.
        stream: whose prompts follow one another and begin alike, such as an environment: keys and values of its last
            prompt are kept until the next one, or until `ActionDecoder.forget`. None keeps nothing.
    """

    instruction: str
    frames: Sequence[Frame]
    keys: Sequence[Hashable] | None = None
    stream: Hashable = None


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


@dataclass
class Counts:
    """What a decoder has done so far for constrained answers.

    Args:
        answers: given.
        passes: forward passes, each of a whole batch.
        passes_of_answers: how many of them each answer took, summed over the answers.
        tokens: of the prompts.
        tokens_reused: how many of them were not run again.
    """

    answers: int = 0
    passes: int = 0
    passes_of_answers: int = 0
    tokens: int = 0
    tokens_reused: int = 0


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
        feature_cache_mb: MiB for frame features; those of walks that have ended go, then the least recently used.
        prefix_cache_mb: MiB for keys and values of prompts with a `stream`; 0 runs every prompt whole.
        drafts: answers that are tried at once in the pass that reads a prompt, the likeliest ones; none decides letter
            by letter. For constrained answers.
        seed: of the sampling.

    Attributes:
        counts: what was done so far.
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
        feature_cache_mb: float = 1024,
        prefix_cache_mb: float = 1024,
        drafts: Sequence[Sequence[Action]] = (),
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
        self._features = FeatureCache(model, encoder, feature_cache_mb)
        self._prefixes = PrefixCache(prefix_cache_mb)
        self._drafts = paths_of(drafts, self.num_actions, stop_is_final)
        self.counts = Counts()
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
        """Drop what is kept of frames and prompts; needed after the model's weights have changed."""
        self._features.clear()
        self._prefixes.clear()

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
            if self.constrained:
                own = None if seeds is None else seeds[start * samples : (start + len(part)) * samples]
                answers += self._constrained(part, samples, own, greedy)
            else:
                answers += self._free([self._query(prompt) for prompt in part], samples)
        return answers

    def _query(self, prompt: Prompt) -> Query:
        return self.encoder.query(prompt.instruction, prompt.frames, prompt.keys)

    def _constrained(
        self, prompts: Sequence[Prompt], samples: int, seeds: Sequence[Seed] | None, greedy: bool
    ) -> list[Answer]:
        passes = self._read_prompts(prompts)
        rows = [_Row(number) for number in range(len(prompts)) for _ in range(samples)]
        noise = self._noise(len(rows), seeds) if self.temperature and not greedy else None
        while True:
            self._decide(rows, noise, passes)
            left = [row for row in rows if not self._complete(row)]
            if not left:
                break
            wanted: dict[int, dict[Path, None]] = {}
            for row in left:
                tried = paths_from(row.path, self.num_actions) if self._drafts else (row.path,)
                wanted.setdefault(row.query, {}).update(dict.fromkeys(tried))
            passes.extend({query: list(paths) for query, paths in wanted.items()})
        self.counts.passes += passes.count
        self.counts.answers += len(rows)
        self.counts.passes_of_answers += sum(row.passes for row in rows)
        return [self._answer(row) for row in rows]

    def _read_prompts(self, prompts: Sequence[Prompt]) -> Passes:
        """Run the prompts, but for what is kept of them, and behind each the drafts."""
        queries = [self._query(prompt) for prompt in prompts]
        streams = [prompt.stream for prompt in prompts]
        known = [self._prefixes.beginning(*pair) for pair in zip(streams, queries, strict=True)]
        features = self._features.of(queries, [part.images for part in known], streams)
        passes = Passes(self.model, self.encoder, self.grammar)
        passes.read(queries, known, features, self._drafts)
        for row, (stream, query) in enumerate(zip(streams, queries, strict=True)):
            if stream is not None and self._prefixes.capacity:
                self._prefixes.keep(stream, query, passes.states(row))
        self.counts.tokens += sum(len(query.ids) for query in queries)
        self.counts.tokens_reused += sum(part.tokens for part in known)
        return passes

    def _decide(self, rows: Sequence[_Row], noise: Tensor | None, passes: Passes) -> None:
        """Go on with each answer as far as its path has been run."""
        while ready := [
            number
            for number, row in enumerate(rows)
            if not self._complete(row) and row.path in passes.logits[row.query]
        ]:
            four = torch.stack([passes.logits[rows[number].query][rows[number].path] for number in ready])
            made = [len(rows[number].actions) for number in ready]
            chosen, log_probs = self._choose(four, None if noise is None else noise[ready, made])
            for number, action, log_prob in zip(ready, chosen, log_probs, strict=True):
                rows[number].actions.append(ACTIONS[action])
                rows[number].log_probs.append(log_prob)
                rows[number].passes = passes.count

    def _complete(self, row: _Row) -> bool:
        return len(row.actions) == self.num_actions or (self.stop_is_final and row.last is Action.STOP)

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
        actions, valid = self.encoder.space.read(text, self.num_actions, self.lenient)
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
    drafts: int | None = None,
    **options: Any,
) -> ActionDecoder:
    """Load a checkpoint and make what asks it. Decoders of one checkpoint share its model while one of them lives.

    Args:
        path: a folder or a Hugging Face id.
        card: how to ask; None: as the checkpoint's own `vlnr1.json` says.
        dtype: as `checkpoint.load` takes it.
        device: None: the process's current GPU where there is one.
        attn_implementation: as `checkpoint.load` takes it.
        drafts: how many of the card's most frequent answers are tried at once; 0 decides letter by letter, None:
            `usual_count` of the device.
        options: of `ActionDecoder`, such as `temperature`.

    Raises:
        CheckpointError: it cannot be loaded, or has no card and none is given.
    """
    model, processor, card = checkpoint.load_shared(path, card, dtype, device, attn_implementation)
    answers = choose_drafts(card.frequent_answers, drafts, card.num_actions, model.device.type)
    return ActionDecoder(model, PromptEncoder.from_card(processor, card), drafts=answers, **options)


@dataclass
class _Row:
    """The decisions made so far for one answer.

    Args:
        query: the number of its prompt in the batch.
        passes: after how many passes over that batch its last decision was made.
    """

    query: int
    actions: list[Action] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    passes: int = 0

    @property
    def path(self) -> Path:
        return tuple(self.actions)

    @property
    def last(self) -> Action | None:
        return self.actions[-1] if self.actions else None
