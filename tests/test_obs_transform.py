import numpy as np
import pytest
import torch
from gym import spaces
from omegaconf import OmegaConf

from habitat_vlnr1.frame_files import decode_picture, encode_jpeg
from habitat_vlnr1.frame_store import FrameStore
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.obs_transform import (
    MEMORY,
    MEMORY_STEPS,
    LongShortMemory,
    LongShortMemoryConfig,
    looked_at,
    memory_frames,
    remember,
    remember_walk,
)
from habitat_vlnr1.observations import draw_environment, environment_of, rollout_id
from habitat_vlnr1.sim.sensors import ClockSensor

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


def kept(transform):
    return {rollout: len(frames) for rollout, frames in transform._frames.items()}


def test_a_rollout_goes_when_its_environment_begins_another():
    transform = LongShortMemory(make_memory("uniform", budget=4))
    environments = [draw_environment() for _ in range(65)]
    for count in range(3):
        for step in range(count + 2):
            transform(batch([(rollout_id(environment, count), step) for environment in environments]))
    assert kept(transform) == {rollout_id(environment, 2): 4 for environment in environments}
    transform(batch([(rollout_id(environments[0], 3), 0)]))  # all others are paused
    assert len(kept(transform)) == 65 and kept(transform)[rollout_id(environments[0], 3)] == 1


def test_ids_that_tell_no_environment_are_bounded_by_what_was_seen_together():
    transform = LongShortMemory(make_memory("uniform", budget=4))
    for rollout in range(1, 21):
        transform(batch([(rollout, 0)]))
    assert list(kept(transform)) == [19, 20]
    transform(batch([(rollout, 0) for rollout in range(100, 165)]))
    transform(batch([(rollout, 0) for rollout in range(200, 265)]))
    assert shown(transform(batch([(100, 1)]))) == [[(1000 % 256, 0)]]


def test_the_clock_tells_rollouts_and_environments_apart():
    clocks = [ClockSensor(None, None, config=OmegaConf.create({})) for _ in range(2)]
    resets = [[tuple(clock.get_observation().tolist()) for clock in clocks] for _ in range(3)]
    ids = [[rollout for rollout, _ in reset] for reset in resets]
    assert len({rollout for reset in ids for rollout in reset}) == 6
    assert [list(map(environment_of, reset)) for reset in ids] == [list(map(environment_of, ids[0]))] * 3
    assert environment_of(ids[0][0]) != environment_of(ids[0][1])
    assert clocks[0].get_observation(action=1).tolist() == [ids[2][0], 1]
    assert 0 < max(ids[2]) < 2**62


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


def test_what_is_only_remembered_is_shown_later():
    """While environments follow their plans nothing is made of the frames; before the memory come other transforms."""
    seen, told = (LongShortMemory(make_memory("uniform", budget=4)) for _ in range(2))

    def half(observations):
        return {**observations, "rgb": observations["rgb"] // 2}

    for step in range(3):
        remember(batch([(1, step)]), [half, told, seen.forward])
    for step in range(4):
        wanted = seen({**batch([(1, step)]), "rgb": batch([(1, step)])["rgb"] // 2})
    assert shown(told(half(batch([(1, 3)])))) == shown(wanted) == [[(5, 0), (5, 1), (6, 2)]]
    with pytest.raises(RuntimeError, match="it must see every step"):
        remember(batch([(1, 9)]), [told])


@pytest.mark.parametrize("params", STRATEGIES)
def test_frames_that_no_question_shows_need_not_be_rendered(params):
    whole, sparing = (LongShortMemory(make_memory(**params)) for _ in range(2))
    wanted = looked_at([sparing], range(0, 61, 6))
    assert {0, 6, 54} <= wanted and looked_at([sparing, lambda observations: observations], [0]) is None
    for question in range(0, 55, 6):
        assert shown(sparing(batch([(7, question)]))) == shown(whole(batch([(7, question)])))
        between = [{key: value[0].numpy() for key, value in batch([(7, question + k)]).items()} for k in range(1, 6)]
        remember_walk(between, [whole])
        clocks = [{"vlnr1_clock": view["vlnr1_clock"]} for view in between]
        seen = [view["vlnr1_clock"][1] in wanted for view in between]
        remember_walk([v if s else c for v, s, c in zip(between, seen, clocks, strict=True)], [sparing])
    left_out = {*range(60)} - wanted
    if left_out:
        with pytest.raises(RuntimeError, match=r"was not rendered: set vlnr1\.eval\.render_all=true"):
            sparing._frames.read(7, min(left_out))


def test_frames_are_shown_as_a_jpeg_of_the_exports_quality_shows_them():
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(3)]
    files = [decode_picture(encode_jpeg(frame, 60)) for frame in frames]
    transform = LongShortMemory(make_memory("uniform", budget=4), jpeg_quality=60)
    for step, frame in enumerate(frames):
        clock = torch.tensor([[1, step]])
        result = transform({"rgb": torch.from_numpy(frame)[None], "vlnr1_clock": clock})
    assert (memory_frames(result)[0, :2].numpy() == np.stack(files[:2])).all()
    assert (result["rgb"][0].numpy() == files[2]).all() and (files[2] != frames[2]).any()


@pytest.mark.parametrize("jpeg_quality", [None, 95])
def test_frames_beyond_the_memory_are_kept_in_files_which_go_with_their_rollouts(jpeg_quality):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    small, large = FrameStore(2000, jpeg_quality), FrameStore(2**20, jpeg_quality)
    for store in (small, large):
        for number, frame in enumerate(frames):
            store.add(number % 2, frame)
    assert 0 < small.held <= 2000 < large.held
    for rollout in (0, 1):
        assert [len(small[rollout]), small.touch(rollout), len(large[rollout])] == [3, 3, 3]
        for step in (2, 0, 1):
            assert (small.read(rollout, step) == large.read(rollout, step)).all()
    if jpeg_quality is None:
        assert (small.read(1, 2) == frames[5]).all()
    for rollout in (0, 1, 7):
        small.drop(rollout)
    assert small.held == 0 and list(small) == [] and small.touch(7) == 0


def test_the_input_batch_is_left_alone():
    observations = batch([(1, 0)])
    LongShortMemory(make_memory("current"))(observations)
    assert set(observations) == {"rgb", "vlnr1_clock"}
