"""What travels in an observation: the keys, and words as arrays.

Habitat's observation batches carry tensors only, so words travel as UTF-8 bytes of a fixed length.
"""

import secrets

import numpy as np

from habitat_vlnr1.errors import VLNR1Error

INSTRUCTION = "vlnr1_instruction"
"""uint8 [max_bytes]: the episode's words, `encode_text`."""
CLOCK = "vlnr1_clock"
"""int64 [2]: a rollout's unique id (`rollout_id`) and its step; what belongs to a rollout is keyed by it."""
EXPERT = "vlnr1_expert"
"""int64 [1]: what the expert would do now."""
PLAN = "vlnr1_plan"
"""int64 [n]: the expert's next actions, -1 behind them."""
DESCRIPTION = "vlnr1_description"
"""uint8 [max_bytes]: what the frame shows, in words."""
MEMORY = "vlnr1_memory"
"""uint8 [H, budget · W, 3]: the frames of the past that a memory strategy has chosen, side by side."""
MEMORY_STEPS = "vlnr1_memory_steps"
"""int64 [budget]: the steps of those frames, -1 behind them."""


def encode_text(text: str, max_bytes: int) -> np.ndarray:
    """UTF-8 bytes of `text`, zero padded.

    Returns: uint8 [max_bytes].
    Raises ValueError when the text does not fit: a cut instruction would be a different instruction.
    """
    data = text.encode("utf-8")
    if len(data) > max_bytes:
        raise VLNR1Error(f"text of {len(data)} bytes does not fit into {max_bytes}: {text[:60]!r}…")
    array = np.zeros(max_bytes, dtype=np.uint8)
    array[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return array


def decode_text(array: np.ndarray) -> str:
    """The text of a zero-padded uint8 array [max_bytes]; the inverse of `encode_text`."""
    return bytes(np.asarray(array, dtype=np.uint8)).rstrip(b"\0").decode("utf-8")


_COUNT_BITS = 24


def rollout_id(environment: int, count: int) -> int:
    """A positive int64 for an environment's `count`-th rollout.

    Args:
        environment: 1 … 2^38 - 1, another one in each environment.
    """
    return environment << _COUNT_BITS | count


def environment_of(rollout: int) -> int:
    """The environment of a `rollout_id`; 0 for an id that was made otherwise and tells nothing."""
    return rollout >> _COUNT_BITS


def draw_environment() -> int:
    """A number for `rollout_id`. Not from a seeded generator: workers with equal seeds must not draw equal ones."""
    return 1 + secrets.randbelow((1 << 38) - 1)
