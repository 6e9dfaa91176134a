"""Text arrays, descriptions, time warping and the division of episodes: no simulator needed."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from habitat_vlnr1.observations import decode_text, encode_text
from habitat_vlnr1.sim.describe import describe, describe_cells
from habitat_vlnr1.sim.env_factory import split_episodes
from habitat_vlnr1.sim.measures import DTW


@pytest.mark.parametrize("text", ["", "Go left.", "naïve café", "सोफ़े के पास जाओ", "🛋" * 64])
def test_text_round_trip(text):
    array = encode_text(text, 256)
    assert array.shape == (256,) and array.dtype == np.uint8
    assert decode_text(array) == text


def test_text_is_never_cut():
    with pytest.raises(ValueError, match="5 bytes does not fit into 4"):
        encode_text("größ"[:3] + "ab"[:1], 4)


def test_description_goes_from_left_to_right():
    semantic = np.zeros((10, 100), dtype=np.int32)
    semantic[:, :20], semantic[:, 45:55], semantic[:, 90:], semantic[9, 20:45] = 1, 2, 3, 4
    semantic[0, 20:45] = 5
    semantic[1, 20] = 6
    depth = np.full((10, 100), 1.2)
    depth[:, 90:] = 3.6
    names = {1: "red sofa", 2: "door frame", 3: "blue bed", 4: "wood floor", 5: "blue wall", 6: "green lamp"}
    text = describe(semantic, depth, names, min_share=0.005, max_things=9)
    assert text == "far left 1 m red sofa, ahead 1 m door frame, far right 4 m blue bed, room blue wall wood floor"
    assert describe(semantic, depth, names, 0.005, max_things=1) == "far left 1 m red sofa, room blue wall wood floor"


def test_description_of_nothing():
    assert describe(np.zeros((4, 4), int), np.zeros((4, 4)), {}, 0.1, 5) == ""


def test_cells_are_described_row_by_row_the_largest_first():
    semantic = np.array([[1, 1, 2, 2], [1, 1, 2, 3], [4, 4, 5, 9], [4, 4, 0, 9]])
    depth = np.array([[1.0] * 4, [1.0, 1.0, 1.0, 2.6], [1.0] * 4, [1.0] * 4])
    names = {1: "blue wall", 2: "door frame", 3: "red sofa", 4: "wood floor", 9: "ceiling"}
    assert describe_cells(semantic, depth, names, 2, 0.2) == "blue wall; door frame 1, red sofa 3; wood floor; "
    assert describe_cells(semantic, depth, names, 2, 0.3) == "blue wall; door frame 1; wood floor; "
    assert describe_cells(semantic, depth, {}, 3, 0.1).split("; ") == [""] * 9


def slow_dtw(a, b):
    table = np.full((len(a) + 1, len(b) + 1), np.inf)
    table[0, 0] = 0
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = np.linalg.norm(x - y) + min(table[i - 1, j], table[i, j - 1], table[i - 1, j - 1])
    return table[-1, -1]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_growing_dtw_equals_the_table(n, m, seed):
    rng = np.random.default_rng(seed)
    path, reference = rng.normal(size=(n, 3)), rng.normal(size=(m, 3))
    dtw = DTW(reference)
    for i, point in enumerate(path, 1):
        assert dtw.add(point) == pytest.approx(slow_dtw(path[:i], reference))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 6))
def test_episodes_are_divided_evenly_and_by_scene(scenes, parts):
    episodes = [SimpleNamespace(scene_id=scene, name=i) for i, scene in enumerate(scenes)]
    split = split_episodes(episodes, parts)
    assert sorted(e.name for part in split for e in part) == list(range(len(scenes)))
    assert max(map(len, split)) - min(map(len, split)) <= 1
    # Every cut scene costs one more load: at most one for each border.
    assert sum(len({e.scene_id for e in part}) for part in split) <= len(set(scenes)) + parts - 1
