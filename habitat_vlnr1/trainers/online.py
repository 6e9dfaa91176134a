"""GRPO with rewards from rolled-out episodes, beyond the paper: the group is G walks of one episode.

The recorded actions are one of several right ways; what counts in the end is where a walk ends. Here an answer is
followed by the actions that it says, in Habitat's VectorEnv, until STOP or the step limit, and what the walk earned
(progress, success, nDTW) is the reward of all its answers. GRPO's equations stay as they are: the advantage is the
walk's, normalised over the group. Of each walk `turns` answers, drawn at random, are trained on: an unbiased sample of
the policy gradient, and a batch of fixed size as TRL wants it.

It costs a walk per `turns` rows (some ten steps of the simulator and two to four answers), where recorded actions cost
nothing: see docs/results.md for figures.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from habitat.core.logging import logger
from habitat_baselines.common.obs_transformers import apply_obs_transforms_batch
from habitat_baselines.utils.common import batch_obs

from habitat_vlnr1.actions import Action
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Answer, Prompt
from habitat_vlnr1.obs_transform import looked_at, remember_walk
from habitat_vlnr1.observations import EXPERT
from habitat_vlnr1.policies.answering import prompt_of
from habitat_vlnr1.sim.episode_files import SAME
from habitat_vlnr1.sim.side_by_side import SideBySide, groups_of
from habitat_vlnr1.sim.vector_env import Key, Stretch, newly_lost, walk_at
from habitat_vlnr1.trainers.grpo import GroupTrainer

MEASURES = ("success", "spl", "ndtw", "distance_to_goal")


Turn = tuple[Prompt, Answer]


@dataclass
class Walk:
    """One rolled-out episode: what was asked and answered, and the measures at its end.

    Args:
        key: its episode.
        seed: of the answers, and of which of them are kept.
        keep: how many turns are drawn from it. Others are not held meanwhile: a prompt has up to 17 frames.

    Attributes:
        answers: given so far.
        steps: taken so far.
    """

    key: Key
    seed: tuple[int, ...]
    keep: int
    answers: int = 0
    steps: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    plan: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._kept: list[Turn] = []
        self._chance = np.random.default_rng(self.seed)

    def add(self, turn: Turn) -> None:
        """Note a turn. Any `keep` of all are equally likely to be held (reservoir sampling)."""
        self.answers += 1
        if len(self._kept) < self.keep:
            self._kept.append(turn)
        elif (place := int(self._chance.integers(self.answers))) < self.keep:
            self._kept[place] = turn

    def drawn(self) -> list[Turn]:
        """`keep` turns at random, without repetition where there are as many."""
        if self.answers >= self.keep:
            return self._kept
        return [self._kept[i] for i in self._chance.choice(self.answers, self.keep)]


class Walkers:
    """Walks episodes in a VectorEnv with what a decoder answers.

    Each environment carries out its plan by itself. The model is asked when one half of them waits for it, and
    answers it in one batch while the other half goes on.

    Args:
        envs: its environments have all episodes, the method `keep_episodes` and the measures of `MEASURES`, and begin
            no episode by themselves (`share_episodes` of the factory).
        transforms: observation transforms, the memory among them.
        execute_horizon: actions of an answer that are executed before the next question.
        max_steps: of a walk. Frames that no question within them shows are not rendered.

    Attributes:
        left_out: episodes that nobody can walk, and why.
    """

    def __init__(self, envs: Any, transforms: Sequence[Any], execute_horizon: int, max_steps: int):
        self.envs = envs
        self.looked_at = looked_at(transforms, range(0, max_steps + 1, execute_horizon))
        self.transforms = transforms
        self.execute_horizon = execute_horizon
        self.left_out: dict[Key, str] = {}
        for index in range(envs.num_envs):
            if EXPERT in envs.observation_spaces[index].spaces:  # it plans at every step, and nobody asks it
                envs.call_at(index, "silence", {"uuid": EXPERT, "silent": True})

    def walk(self, walks: Sequence[Walk], decoder: ActionDecoder) -> None:
        """Walk all of them to their ends."""
        queues = deal(sorted(walks, key=lambda walk: walk.key), self.envs.num_envs)
        rows = list(queues)
        with SideBySide[Stretch](groups_of(rows, -(-len(rows) // 2))) as at_work:
            for index in rows:
                at_work.start(index, partial(self._begin, index, queues[index][0].key))
            while back := at_work.back():
                for index, stretch in back.items():
                    self._note(queues[index], stretch)
                waiting = [index for index in back if queues[index]]
                if waiting:
                    batch: Any = batch_obs([back[index].view for index in waiting])
                    batch = apply_obs_transforms_batch(batch, self.transforms)
                    self._answer([queues[index][0] for index in waiting], batch, decoder)
                for index in waiting:
                    queue = queues[index]
                    after = queue[1].key if len(queue) > 1 else None
                    at_work.start(index, partial(self._carry_out, index, queue[0], after))

    def _note(self, queue: deque[Walk], stretch: Stretch) -> None:
        """What an environment has done by itself; a walk that has ended leaves its queue."""
        self.left_out |= stretch.lost
        remember_walk([view for view, *_ in stretch.outputs[:-1]], self.transforms)
        if queue and stretch.outputs:
            queue[0].steps += len(stretch.outputs)
            if stretch.outputs[-1][2]:
                self._measure(queue.popleft(), stretch.outputs[-1][3])

    # ------------------------------------------------------------------------------- in the thread of an environment
    def _begin(self, index: int, key: Key) -> Stretch:
        """Start an environment's next walk."""
        self.envs.call_at(index, "keep_episodes", {"keys": [key]})
        (view,) = self.envs.reset_at(index)
        left_out = newly_lost(self.envs, index)
        why = None if key in left_out else self.envs.call_at(index, "why_unusable")
        if why:
            logger.warning(f"episode {key[1]} of {key[0]} teaches nothing: {why}")
            left_out[key] = why
        return Stretch([], view, left_out)

    def _carry_out(self, index: int, walk: Walk, after: Key | None) -> Stretch:
        """Carry out what was answered; where that ends the walk, start the next one, if there is one."""
        actions = list(walk.plan)
        walk.plan.clear()
        shown = [self.looked_at is None or walk.steps + number + 1 in self.looked_at for number in range(len(actions))]
        outputs = walk_at(self.envs, index, actions, shown)
        lost = newly_lost(self.envs, index)
        if not outputs[-1][2] or after is None:
            return Stretch(outputs, outputs[-1][0], lost)
        begun = self._begin(index, after)
        return Stretch(outputs, begun.view, lost | begun.lost)

    def _measure(self, walk: Walk, info: dict[str, Any]) -> None:
        """What a walk has come to. Where nobody can walk (distances are infinite), every walk of the group comes to
        the same, so that none has an advantage."""
        usable = walk.key not in self.left_out
        walk.measures = {name: float(info[name]) if usable else 0.0 for name in MEASURES}

    def _answer(self, walks: Sequence[Walk], batch: Any, decoder: ActionDecoder) -> None:
        """Ask for all of them at once, and plan what the answers say."""
        prompts = [prompt_of(batch, row) for row in range(len(walks))]
        seeds = [(*walk.seed, walk.answers) for walk in walks]
        for walk, prompt, answer in zip(walks, prompts, decoder.decode(prompts, seeds=seeds), strict=True):
            walk.add((prompt, answer))
            walk.plan.extend(int(action) for action in answer.actions[: self.execute_horizon])
            if Action.STOP in walk.plan:  # nothing comes after it
                while walk.plan[-1] != Action.STOP:
                    walk.plan.pop()


def deal(walks: Sequence[Walk], hands: int) -> dict[int, deque[Walk]]:
    """Divide walks among environments, those of one episode to as few as an equal share allows."""
    borders = [len(walks) * hand // hands for hand in range(hands + 1)]
    parts = {hand: deque(walks[a:b]) for hand, (a, b) in enumerate(pairwise(borders))}
    return {hand: part for hand, part in parts.items() if part}


class OnlineTrainer(GroupTrainer):
    """GRPO whose answers are tried out.

    Its dataset has the columns `prompt` (the instruction), `scene_id`, `episode_id` and `start_distance` (geodesic,
    metres). Reward functions get the walk's measures as columns: `success`, `spl`, `ndtw`, `distance_to_goal`.

    Args:
        walkers: walk.
        turns: rows of one walk; `num_generations` rows are `num_generations / turns` walks.
        rest: those of `GroupTrainer`.
    """

    def __init__(self, *args: Any, walkers: Walkers, turns: int, **rest: Any):
        super().__init__(*args, records=None, **rest)
        if self.num_generations % turns or self.num_generations // turns < 2:
            raise VLNR1Error(
                f"vlnr1.rft.num_generations is {self.num_generations}, vlnr1.rft.online.turns {turns}: a group needs "
                "at least two walks of equally many turns"
            )
        self.walkers = walkers
        self.turns = turns
        self._asked: list[Prompt] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        return super()._generate_and_score_completions([{**row, "record": n} for n, row in enumerate(inputs)])

    def roll_out(self) -> dict[str, Any]:
        """One walk for every `turns` rows of a group; the rows are answers drawn from it."""
        walks = [self._walk(number) for number in range(0, len(self._inputs), self.turns)]
        with self._decoding():
            self.walkers.walk(walks, self.decoder)
        drawn = [(walk, turn) for walk in walks for turn in walk.drawn()]
        self._asked = [prompt for _, (prompt, _) in drawn]
        answers = [answer for _, (_, answer) in drawn]
        output = self._output([self._query(number).ids.tolist() for number in range(len(drawn))], answers)
        usable = [walk for walk in walks if walk.key not in self.walkers.left_out]
        for name in MEASURES:
            output[name] = [walk.measures[name] for walk, _ in drawn]
            if usable:
                self._log_metric(f"walks/{name}", float(np.mean([walk.measures[name] for walk in usable])))
        self._log_metric("walks/answers", float(np.mean([walk.answers for walk in walks])))
        return output

    def _walk(self, number: int) -> Walk:
        row = self._inputs[number]
        seed = (self.args.seed, self.state.global_step, zlib.crc32(row["episode_id"].encode()), self._place(number))
        return Walk((row["scene_id"], row["episode_id"]), seed, self.turns)

    def _query(self, number: int) -> Any:
        prompt = self._asked[number]
        return self.encoder.query(prompt.instruction, prompt.frames, prompt.keys)


def first_distance(episode: Any) -> float | None:
    """Geodesic start-to-goal distance in metres, as the data set gives it; None where it gives none to divide by."""
    distance = (episode.info or {}).get("geodesic_distance")
    if isinstance(distance, bool) or not isinstance(distance, int | float):
        return None
    return float(distance) if math.isfinite(distance) and distance >= SAME else None
