import numpy as np
import pytest
import torch
from gym import spaces
from omegaconf import OmegaConf

from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.obs_transform import MEMORY, MEMORY_STEPS, LongShortMemory, LongShortMemoryConfig, memory_frames

STRATEGIES = [
    {"strategy": "long_short", "budget": 5, "short_window": 2, "long_stride": 2},
    {"strategy": "uniform", "budget": 4},
    {"strategy": "current"},
]


def batch(clocks):
    """Each frame's pixels say which rollout and step it is."""
    frames = [torch.full((4, 6, 3), (10 * rollout + step) % 256, dtype=torch.uint8) for rollout, step in clocks]
    return {"rgb": torch.stack(frames), "vlnr1_clock": torch.tensor(clocks)}


def shown(observations):
    """Per row: [(value of the frame, its step), …]."""
    rows = zip(memory_frames(observations), observations[MEMORY_STEPS], strict=True)
    return [
        [(int(frame.float().mean()), int(s)) for frame, s in zip(frames, steps, strict=True) if s >= 0]
        for frames, steps in rows
    ]


@pytest.mark.parametrize("params", STRATEGIES)
def test_pausing_resets_and_reordering_never_mix_histories(params):
    transform = LongShortMemory(make_memory(**params))
    rng = np.random.default_rng(0)
    step_of = {1: 0, 2: 0, 3: 0}
    next_rollout = 4
    for _ in range(200):
        rollouts = [r for r in rng.permutation(list(step_of)) if rng.random() < 0.8]
        if not rollouts:
            continue
        clocks = [(int(r), step_of[r]) for r in rollouts]
        result = transform(batch(clocks))
        expected = [[((10 * r + s) % 256, s) for s in transform.memory.select(t)] for r, t in clocks]
        assert shown(result) == expected
        assert (memory_frames(result)[result[MEMORY_STEPS] < 0] == 0).all()
        for r in rollouts:
            step_of[r] += 1
            if rng.random() < 0.05:
                del step_of[r]
                step_of[next_rollout] = 0
                next_rollout += 1


def test_same_step_twice_is_remembered_once():
    transform = LongShortMemory(make_memory("uniform", budget=4))
    transform(batch([(1, 0)]))
    transform(batch([(1, 0)]))
    assert shown(transform(batch([(1, 1)]))) == [[(10, 0)]]


def test_memory_is_bounded_by_rollouts():
    transform = LongShortMemory(make_memory("uniform", budget=4), max_rollouts=3)
    for rollout in range(20):
        transform(batch([(rollout, 0)]))
    assert len(transform._frames) == 3


def test_a_missed_step_is_an_error_not_a_wrong_frame():
    transform = LongShortMemory(make_memory("uniform", budget=4))
    with pytest.raises(RuntimeError, match="it must see every step"):
        transform(batch([(1, 3)]))


def test_observation_space_grows_by_the_budget():
    space = spaces.Dict({"rgb": spaces.Box(0, 255, (4, 6, 3), np.uint8), "vlnr1_clock": spaces.Box(0, 1, (2,))})
    transform = LongShortMemory.from_config(OmegaConf.structured(LongShortMemoryConfig))
    grown = transform.transform_observation_space(space)
    assert grown[MEMORY].shape == (4, 16 * 6, 3)
    assert grown[MEMORY_STEPS].shape == (16,)
    assert MEMORY not in space.spaces
    with pytest.raises(ValueError, match="needs the observation 'vlnr1_clock'"):
        transform.transform_observation_space(spaces.Dict({"rgb": space["rgb"]}))


def test_the_input_batch_is_left_alone():
    observations = batch([(1, 0)])
    LongShortMemory(make_memory("current"))(observations)
    assert set(observations) == {"rgb", "vlnr1_clock"}
