"""The navigator for any program: instruction and camera frames in, the next action or the whole answer out.

`VLNR1Agent` is what Habitat's challenges and VLN-CE call an agent (`reset`, `act`). It needs a checkpoint, no config
and no simulator, and imports none. `Navigator` decides for several walks at once; the policy server is made of it.

Examples:
    >>> agent = VLNR1Agent.from_checkpoint("data/vlnr1/quickstart/checkpoints")  # doctest: +SKIP
    >>> agent.reset()  # doctest: +SKIP
    >>> agent.act({"rgb": frame, "instruction": "Stop at the red sofa."})  # doctest: +SKIP
    {'action': 1}
"""

from __future__ import annotations

import itertools
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.frame_store import FrameStore
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Answer, Prompt, load_decoder
from habitat_vlnr1.memory import Memory, make_memory
from habitat_vlnr1.observations import INSTRUCTION, decode_text
from habitat_vlnr1.plan import Plan

if TYPE_CHECKING:
    from habitat.core.agent import Agent
else:  # Habitat's own class where Habitat is in use already; to import it would bring a simulator with it
    Agent = getattr(sys.modules.get("habitat.core.agent"), "Agent", object)

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Step:
    """What is to be done now.

    Args:
        action: to execute.
        answer: the one that the action is of.
        number: which of the answer's actions it is, from 0 on; 0 means that the model has just been asked.
    """

    action: Action
    answer: Answer
    number: int


class Walk:
    """One agent on its way: every frame so far, and the answer that is being carried out.

    Args:
        memory_mb: MiB of host memory for its frames; what is beyond goes to a temporary file.
        jpeg_quality: frames are kept, and shown, as a JPEG of this quality shows them, as in training; None: as they
            come.
    """

    def __init__(self, memory_mb: float = 256, jpeg_quality: int | None = None):
        self.number = next(_NUMBERS)
        self.instruction = ""
        self.frames = 0
        self._store = FrameStore(int(memory_mb * 2**20), jpeg_quality)
        self._shape: tuple[int, ...] | None = None
        self._plan: Plan | None = None

    def see(self, frame: np.ndarray, instruction: str) -> None:
        """The next step's view. Another instruction than before holds from now on: what was planned is dropped.

        Args:
            frame: uint8 [H, W, 3] or [H, W, 4], of one size throughout the walk.

        Raises:
            VLNR1Error: it is something else.
        """
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] not in (3, 4) or 0 in frame.shape:
            raise VLNR1Error(f"a frame must be uint8 [height, width, 3], got {frame.dtype} {list(frame.shape)}")
        frame = np.ascontiguousarray(frame[..., :3])
        if self._shape not in (None, frame.shape):
            before = list(self._shape or ())
            raise VLNR1Error(f"frames of a walk have one size: {list(frame.shape)} came after {before}")
        if instruction != self.instruction:
            self._plan = None
        self.instruction, self._shape = instruction, frame.shape
        self._store.add(0, frame)
        self.frames += 1

    def planned(self) -> Step | None:
        """What the last answer has for the newest frame; None: the model has to be asked."""
        number = self._plan.number(self.frames - 1) if self._plan else None
        if self._plan is None or number is None:
            return None
        return Step(self._plan.answer.actions[number], self._plan.answer, number)

    def prompt(self, memory: Memory) -> Prompt:
        """The question at the newest frame."""
        now = self.frames - 1
        steps = [*memory.select(now), now]
        frames = [self._store.read(0, step) for step in steps]
        return Prompt(self.instruction, frames, [(self.number, step) for step in steps], stream=self.number)

    def take(self, answer: Answer, horizon: int) -> None:
        """The answer to `prompt`, of which so many actions are carried out from the newest frame on."""
        self._plan = Plan(self.frames - 1, answer, horizon)

    def close(self) -> None:
        """Forget the frames."""
        self._store.drop(0)


class Navigator:
    """Decides for several walks at once: those that need an answer are asked about together.

    Args:
        decoder: asks the model.
        memory: which frames of the past it is shown.
        execute_horizon: actions of an answer that are carried out before it is asked again; None: all.
        jpeg_quality: of `Walk`.
        memory_mb: of `Walk`, each.

    Raises:
        VLNR1Error: `execute_horizon` is more than an answer has.
    """

    def __init__(
        self,
        decoder: ActionDecoder,
        memory: Memory,
        execute_horizon: int | None = None,
        jpeg_quality: int | None = None,
        memory_mb: float = 256,
    ):
        n = decoder.num_actions
        self.execute_horizon = n if execute_horizon is None else execute_horizon
        if not 1 <= self.execute_horizon <= n:
            raise VLNR1Error(f"execute_horizon is {execute_horizon}, but the model predicts {n} actions: take 1 … {n}")
        self.decoder, self.memory = decoder, memory
        self.jpeg_quality, self.memory_mb = jpeg_quality, memory_mb

    @classmethod
    def from_checkpoint(
        cls, path: str, execute_horizon: int | None = None, memory_mb: float = 256, **options: Any
    ) -> Navigator:
        """Of a checkpoint that says how it is asked.

        Args:
            path: a folder, a run's folder of checkpoints (the newest is taken), or a Hugging Face id.
            execute_horizon: as for the class.
            memory_mb: as for the class.
            options: of `load_decoder`, such as `device`, `dtype`, `temperature`.

        Raises:
            CheckpointError: it cannot be loaded, or has no card.
        """
        path = checkpoint.existing(checkpoint.resolve(path))
        decoder = load_decoder(path, **options)  # says so where there is no card
        card = checkpoint.read_card(path)
        assert card is not None
        return cls(decoder, make_memory(**card.memory), execute_horizon, card.jpeg_quality, memory_mb)

    @property
    def space(self) -> ActionSpace:
        """What the actions are: metres of a step, degrees of a turn, and their words."""
        return self.decoder.encoder.space

    def begin(self) -> Walk:
        """A walk that has seen nothing yet."""
        return Walk(self.memory_mb, self.jpeg_quality)

    def decide(self, walks: Sequence[Walk]) -> list[Step]:
        """What each walk is to do after its newest frame."""
        self.ask([walk for walk in walks if walk.planned() is None])
        steps: list[Any] = [walk.planned() for walk in walks]  # no None after asking
        return steps

    def ask(self, walks: Sequence[Walk]) -> list[Answer]:
        """The model's answers at the newest frames, whatever was planned; they are carried out from now on."""
        if not walks:
            return []
        # What is drawn, at a temperature, depends on (seed, instruction, step) alone.
        seeds = [(self.decoder.seed, zlib.crc32(walk.instruction.encode()), walk.frames - 1) for walk in walks]
        answers = self.decoder.decode([walk.prompt(self.memory) for walk in walks], seeds=seeds)
        for walk, answer in zip(walks, answers, strict=True):
            walk.take(answer, self.execute_horizon)
        return answers


class VLNR1Agent(Agent):
    """A `habitat.Agent` (where Habitat was imported before) that keeps its memory itself.

    Show it every step: `act` or `answer` once per frame, and `reset` before each walk. Observations are a mapping with

    - `rgb`: uint8 [H, W, 3], seen straight ahead;
    - `instruction`: the words, or Habitat's `{"text": …}`; or `vlnr1_instruction` as our task has it.

    Args:
        navigator: decides.
    """

    def __init__(self, navigator: Navigator):
        self.navigator = navigator
        self._walk = navigator.begin()

    @classmethod
    def from_checkpoint(cls, path: str, execute_horizon: int | None = None, **options: Any) -> VLNR1Agent:
        """Of a checkpoint; arguments as `Navigator.from_checkpoint` has them."""
        return cls(Navigator.from_checkpoint(path, execute_horizon, **options))

    @property
    def space(self) -> ActionSpace:
        """What the actions are: metres of a step, degrees of a turn, and their words."""
        return self.navigator.space

    def reset(self) -> None:
        """A new walk begins."""
        self._walk.close()
        self._walk = self.navigator.begin()

    def act(self, observations: Mapping[str, Any]) -> dict[str, Any]:
        """The next action, as `habitat.Env.step` takes it: 0 stop, 1 forward, 2 left, 3 right.

        Raises:
            VLNR1Error: an observation is missing or of a wrong shape.
        """
        self._see(observations)
        (step,) = self.navigator.decide([self._walk])
        return {"action": int(step.action)}

    def answer(self, observations: Mapping[str, Any]) -> Answer:
        """All that the model answers at this step: n actions, their words and log-probabilities.

        It is asked whatever it has answered before; `act` goes on with this answer.

        Raises:
            VLNR1Error: as `act`.
        """
        self._see(observations)
        (answer,) = self.navigator.ask([self._walk])
        return answer

    def _see(self, observations: Mapping[str, Any]) -> None:
        if "rgb" not in observations:
            raise VLNR1Error(f"VLNR1Agent needs the observation 'rgb', but there are only {', '.join(observations)}")
        self._walk.see(observations["rgb"], instruction_of(observations))


def instruction_of(observations: Mapping[str, Any]) -> str:
    """The words in an observation: `instruction`, as text or `{"text": …}`, or `vlnr1_instruction`.

    Raises:
        VLNR1Error: there are none.
    """
    told = observations.get("instruction")
    told = told.get("text") if isinstance(told, Mapping) else told
    if told is None and INSTRUCTION in observations:
        told = decode_text(observations[INSTRUCTION])
    if not isinstance(told, str) or not told.strip():
        raise VLNR1Error(
            "VLNR1Agent needs the observation 'instruction' (its words, or {'text': …}) or "
            f"{INSTRUCTION!r}, but there are only {', '.join(observations)}"
        )
    return told
