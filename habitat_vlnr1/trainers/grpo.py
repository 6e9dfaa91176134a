"""TRL's GRPOTrainer on VLN-Ego records, stage 2 of VLN-R1 (eqs. 3–5 and 9).

Equations (3) to (5) are TRL's own. Two things around them are ours, because here all answers have one form and all
answers of a group one prompt:

- rollouts decide the n letters and append the words behind them (`ActionDecoder`): n short passes instead of one for
  every token, the prompt run once for its G answers;
- scoring runs the group's prompt once and equal answers once (`share_prefixes`), where TRL runs G whole rows, for the
  policy and for the reference.

`RecordTrainer` is plain TRL with our logging; `GroupTrainer` adds the two. On the same answers both have the same loss
and the same gradient, up to rounding.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import trl
from torch import Tensor
from trl.models.utils import unwrap_model_for_generation

from habitat_vlnr1.actions import Action
from habitat_vlnr1.errors import CheckpointError
from habitat_vlnr1.lvlm.checkpoint import why_not_finite
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Answer, Prompt
from habitat_vlnr1.lvlm.inputs import IGNORED, PromptEncoder
from habitat_vlnr1.lvlm.letters import letters_alone
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.optimisation import HEADWAY
from habitat_vlnr1.records import Record, Records
from habitat_vlnr1.rewards import answered_actions, matches
from habitat_vlnr1.sim.headway import Headway
from habitat_vlnr1.trainers.fitting import StopsWhenDiverged, last_good


class RecordTrainer(StopsWhenDiverged, trl.GRPOTrainer):
    """TRL's GRPOTrainer, which also logs how answers compare with the recorded actions, and where the time goes.

    Args:
        headway: walks answers ahead for rewards with that column; None where no reward has it.
        rest: those of `trl.GRPOTrainer`.
    """

    # More than TRL's annotations promise, of a trainer that has been made.
    model: Any
    args: trl.GRPOConfig
    num_generations: int
    reward_funcs: list[Any]

    def __init__(self, *args: Any, headway: Headway | None = None, **rest: Any):
        super().__init__(*args, **rest)
        self.headway = headway

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        if "actions" in inputs[0]:  # walks have none
            hits = [matches(text, row["actions"]) for text, row in zip(completions, inputs, strict=True)]
            self._log_metric("answers/valid", sum(hit is not None for hit in hits) / len(hits))
            for k in range(len(inputs[0]["actions"])):
                right = sum(hit is not None and hit[k] for hit in hits)
                self._log_metric(f"answers/accuracy_{k + 1}", right / len(hits))
        return super()._calculate_rewards(self._walked(inputs, completions), prompts, completions, completion_ids_list)

    def _walked(self, inputs: list[dict[str, Any]], completions: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows with the column `headway`; an answer that is not n actions leads nowhere, at every place."""
        if self.headway is None:
            return inputs
        rows = []
        with self._timed("headway"):
            for row, completion in zip(inputs, completions, strict=True):
                actions, n = answered_actions(completion) or (), len(row["actions"])
                valid = len(actions) == n
                where = row["split"], row["episode_id"], tuple(row["taken"])
                walked = self.headway(*where, tuple(actions)) if valid else [-1.0] * n
                rows.append({**row, HEADWAY: walked})
        return rows

    def _generate(self, prompts: list[Any]) -> Any:
        with self._timed("rollout"):
            try:
                return super()._generate(prompts)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; {self._last_good()}") from None
            except RuntimeError as error:  # what `torch.multinomial` says of NaN, in TRL's own generation
                if "probability tensor" not in str(error):
                    raise
                raise CheckpointError(f"{why_not_finite(self.model)}; {self._last_good()}") from None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        with self._timed("policy_forward"):
            return super()._compute_loss(model, inputs)

    def _last_good(self) -> str:
        folder = self.args.output_dir
        assert folder is not None, "TrainingArguments fills it in"
        return last_good(folder)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Log the seconds of a phase."""
        start = time.perf_counter()
        yield
        mode = "train" if self.model.training else "eval"
        self._metrics[mode][f"seconds/{phase}"].append(time.perf_counter() - start)


class GroupTrainer(RecordTrainer):
    """`RecordTrainer` with rollouts under the grammar, and the prompt of a group scored once.

    Its dataset has the columns `prompt` (any text: it is only printed), `record` (number in `records`) and `actions`.

    Args:
        records: what the rows' numbers count; None where a subclass has other rows.
        encoder: makes the prompts.
        drafts: of `ActionDecoder`.
        train_forced: whether the words behind a letter count in the loss, as in the paper and in plain TRL; else only
            the letters do, each among the four.
        rest: those of `trl.GRPOTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        records: Records | None,
        encoder: PromptEncoder,
        drafts: Sequence[Sequence[Action]] = (),
        train_forced: bool = True,
        **rest: Any,
    ):
        rest["rollout_func"] = lambda prompts, trainer: self.roll_out()
        super().__init__(*args, **rest)
        if self.ref_model is not None:
            share_prefixes(self.accelerator.unwrap_model(self.ref_model))
        self.records = records
        self.encoder = encoder
        self.train_forced = train_forced
        policy = self.accelerator.unwrap_model(self.model)
        self.decoder = ActionDecoder(policy, encoder, temperature=self.temperature, batch_size=64, drafts=drafts)
        self._rows: list[int] = []  # record numbers of the rows that TRL is working on
        self._inputs: list[dict[str, Any]] = []  # these rows

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows, self._inputs = [row["record"] for row in inputs], inputs
        output = super()._generate_and_score_completions(inputs)
        output["record"] = torch.tensor(self._rows)  # TRL shuffles and splits whatever has a row per answer
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._rows = inputs["record"].tolist()
        return super()._compute_loss(model, inputs)

    def roll_out(self) -> dict[str, Any]:
        """Answers to the current rows, in TRL's form; equal rows side by side are a group."""
        groups = [(record, len(list(same))) for record, same in itertools.groupby(self._rows)]
        seeds = self._seeds()
        answers: list[Answer] = []
        with self._decoding():
            for size, part in itertools.groupby(groups, key=lambda group: group[1]):
                prompts = [self._prompt(record) for record, _ in part]
                own = seeds[len(answers) : len(answers) + size * len(prompts)]
                answers += self.decoder.decode(prompts, size, own)
            if not self.model.training:
                self._log_greedy()
        ids = {record: self._query(record).ids.tolist() for record, _ in groups}
        return self._output([ids[record] for record in self._rows], answers)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """The decoder may be asked: the weights are whole, and nothing is kept from earlier ones."""
        self.decoder.forget()
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        ):
            yield

    def _log_greedy(self) -> None:
        """Log what the likeliest answers earn: sampled ones earn more as soon as a model merely grows more certain."""
        records = list(dict.fromkeys(self._rows))
        decoded = self.decoder.decode([self._prompt(record) for record in records], greedy=True)
        likeliest = dict(zip(records, decoded, strict=True))
        answers = [likeliest[record] for record in self._rows]
        rewards = self._earned([answer.text for answer in answers], [list(answer.ids) for answer in answers])
        for name, mean in zip(self.reward_func_names, rewards.nanmean(0).tolist(), strict=True):
            if not math.isnan(mean):
                self._log_metric(f"greedy_rewards/{name}", mean)
        scored = rewards[~rewards.isnan().all(1)]
        if len(scored):
            total = (scored * self.reward_weights.to(scored.device)).nansum(1)
            self._log_metric("greedy_reward", total.mean().item())

    def _earned(self, texts: list[str], ids: list[list[int]]) -> Tensor:
        """Rewards [rows of all processes, functions] as TRL asks for them, NaN where a function has none.

        What the functions log of these answers is dropped: TRL has place for the sampled ones alone.
        """
        kept = self._pending_extra_logs, self._pending_metrics
        self._pending_extra_logs, self._pending_metrics = defaultdict(list), defaultdict(list)
        try:
            prompts = [row["prompt"] for row in self._inputs]
            inputs = self._walked(self._inputs, texts)
            return trl.GRPOTrainer._calculate_rewards(self, inputs, prompts, texts, ids)
        finally:
            self._pending_extra_logs, self._pending_metrics = kept

    def _output(self, prompt_ids: list[list[int]], answers: Sequence[Answer]) -> dict[str, Any]:
        """Rollouts in TRL's form."""
        output: dict[str, Any] = {
            "prompt_ids": prompt_ids,
            "completion_ids": [list(answer.ids) for answer in answers],
            "logprobs": None,
        }
        if not self.train_forced:
            output["env_mask"] = [[int(chosen) for chosen in answer.decided] for answer in answers]
        return output

    def _seeds(self) -> list[tuple[int, ...]]:
        """What decides the draws of each row: run, step, record and place in the group.

        Neither the number of processes nor an interruption changes them.
        """
        run = (self.args.seed, self.state.global_step, int(self.model.training))
        return [(*run, record, self._place(i)) for i, record in enumerate(self._rows)]

    def _place(self, number: int) -> int:
        """Where in its group a row of this process stands; a group may lie across processes."""
        size = self.num_generations if self.model.training else self.num_generations_eval
        return (self.accelerator.process_index * len(self._rows) + number) % size

    def _record(self, number: int) -> Record:
        assert self.records is not None, "a subclass without records has its own _prompt and _query"
        return self.records[number]

    def _prompt(self, number: int) -> Prompt:
        record = self._record(number)
        return Prompt(record.instruction, record.frames, record.frames)

    def _query(self, number: int) -> Any:
        record = self._record(number)
        return self.encoder.query(record.instruction, record.frames)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **rest: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """TRL's scoring of completions, [rows, logits_to_keep] each; a prompt and an equal answer run once."""
        counts = attention_mask[:, -logits_to_keep:].sum(1).tolist()
        answers = [tuple(ids[:n]) for ids, n in zip(input_ids[:, -logits_to_keep:].tolist(), counts, strict=True)]
        rows = list(zip(self._rows, answers, strict=True))
        scores: list[tuple[Tensor, Tensor]] = []
        for part in _parts(rows, batch_size or len(rows)):
            distinct = sorted(set(part))
            known = dict(zip(distinct, self._score(model, distinct), strict=True))
            scores += [known[row] for row in part]

        def table(column: int) -> Tensor:
            padded = torch.nn.utils.rnn.pad_sequence([score[column] for score in scores], batch_first=True)
            return torch.nn.functional.pad(padded, (0, logits_to_keep - padded.shape[1]))

        return table(0), table(1) if compute_entropy else None, None

    def _score(self, model: Any, rows: Sequence[tuple[int, tuple[int, ...]]]) -> list[tuple[Tensor, Tensor]]:
        """Log-probability and entropy of every token of each answer."""
        known = {record: self._query(record) for record in dict.fromkeys(record for record, _ in rows)}
        queries = [known[record] for record, _ in rows]
        answers = [answer for _, answer in rows]
        # Gradient checkpointing drops the keys and values that sharing needs; then the rows go through whole.
        groups = None if self.args.gradient_checkpointing else [record for record, _ in rows]
        batch = self.encoder.training_batch(queries, answers, groups)
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        if not self.train_forced:
            return self._score_letters(model, batch, answers)
        answered = batch["labels"][:, 1:] != IGNORED
        with self.accelerator.autocast():
            out = model(**batch, fused_lm_head=True)
        counts = [len(answer) for answer in answers]
        entropy = out.log_probs if out.entropy is None else out.entropy
        return list(zip(out.log_probs[answered].split(counts), entropy[answered].split(counts), strict=True))

    def _score_letters(
        self, model: Any, batch: dict[str, Tensor], answers: Sequence[tuple[int, ...]]
    ) -> list[tuple[Tensor, Tensor]]:
        """The same for letters alone, each among the four that it was drawn among; 0 for the words between them.

        Among all tokens, an answer that earns little could also be made less likely by moving probability to tokens
        that are never drawn, from where nothing would bring it back.
        """
        starts = (batch.pop("labels") != IGNORED).int().argmax(1).tolist()
        letters = [self.decoder.grammar.decisions(answer) for answer in answers]
        places = [[start + place - 1 for place, _ in own] for start, own in zip(starts, letters, strict=True)]
        positions = sorted({position for own in places for position in own})
        ids = sorted({token for own in letters for _, choices in own for token in choices})
        device = self.accelerator.device
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        with self.accelerator.autocast(), letters_alone(head, ids) as columns:
            out = model(**batch, logits_to_keep=torch.tensor(positions, device=device), use_cache=False)
        column = dict(zip(ids, columns, strict=True))
        scores = []
        for logits, answer, own, at in zip(out.logits, answers, letters, places, strict=True):
            rows = torch.tensor([positions.index(position) for position in at], device=device)
            among = torch.tensor([[column[token] for token in choices] for _, choices in own], device=device)
            four = logits[rows].gather(1, among).float().div(self.temperature).log_softmax(-1)
            chosen = [choices.index(answer[place]) for place, choices in own]
            where = torch.tensor([place for place, _ in own], device=device)
            log_probs = four.gather(1, torch.tensor(chosen, device=device)[:, None])[:, 0]
            entropy = -(four.exp() * four).sum(-1)
            empty = four.new_zeros(len(answer))
            scores.append((empty.scatter(0, where, log_probs), empty.scatter(0, where, entropy)))
        return scores


def _parts(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """As many parts in every process, which ZeRO-3 needs."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
