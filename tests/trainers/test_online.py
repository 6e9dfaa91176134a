"""Online RFT on odd episodes: they are named, teach nothing, and end nothing."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from gym import spaces

from habitat_vlnr1.trainers.online import Walk, Walkers
from habitat_vlnr1.trainers.rft_fit import rows_for_walks


class Envs:
    """One environment, in which episode 2's goal cannot be reached; every walk stops at once."""

    num_envs = 1
    observation_spaces = (spaces.Dict(),)

    def call_at(self, index, name, arguments=None):
        if name == "keep_episodes":
            self.key = arguments["keys"][0]
        return "no way from start to goal" if name == "why_unusable" and self.key[1] == "2" else None

    def reset_at(self, index):
        return [{"rgb": np.zeros((2, 2, 3), np.uint8)}]

    def async_step_at(self, index, action):
        assert action == 0

    def wait_step_at(self, index):
        far = self.key[1] == "2"
        measures = {"spl": math.nan, "distance_to_goal": math.inf} if far else {"spl": 0.5, "distance_to_goal": 3.0}
        info = {"success": 0.0, "ndtw": 0.5, **measures}
        return {"rgb": np.zeros((2, 2, 3), np.uint8)}, 0.0, True, info


def test_an_unusable_episode_gives_no_walk_an_advantage(monkeypatch):
    walkers = Walkers(Envs(), [], execute_horizon=6, max_steps=60)
    monkeypatch.setattr(walkers, "_answer", lambda walks, batch, decoder: [walk.plan.append(0) for walk in walks])
    walks = [Walk(("a", name), (seed,), 2) for name in "12" for seed in range(2)]
    walkers.walk(walks, decoder=None)
    assert walkers.left_out == {("a", "2"): "no way from start to goal"}
    assert walks[0].measures == walks[1].measures == {"success": 0, "spl": 0.5, "ndtw": 0.5, "distance_to_goal": 3}
    assert walks[2].measures == walks[3].measures and all(map(math.isfinite, walks[2].measures.values()))


def test_a_walk_holds_the_turns_that_are_drawn_from_it_and_no_others():
    """Each of five turns is among the two drawn in two of five walks; of one turn both rows are."""
    walks = [Walk(("a", "1"), (seed,), 2) for seed in range(2000)]
    for walk in walks:
        for turn in range(5):
            walk.add(turn)
            assert len(walk._kept) <= 2
    counts = Counter(turn for walk in walks for turn in walk.drawn())
    assert all(len(set(walk.drawn())) == 2 and walk.answers == 5 for walk in walks)
    assert [counts[turn] / 2000 for turn in range(5)] == pytest.approx([0.4] * 5, abs=0.04)
    short = Walk(("a", "1"), (0,), 2)
    short.add("only")
    assert short.drawn() == ["only", "only"]


def test_episodes_without_a_distance_to_divide_by_are_left_out_by_id(capsys):
    def episode(name, **info):
        instruction = SimpleNamespace(instruction_text="go")
        return SimpleNamespace(episode_id=name, scene_id="a", instruction=instruction, info=info)

    odd = [episode("2"), episode("3", geodesic_distance=0.0), episode("4", geodesic_distance=math.nan)]
    rows = rows_for_walks([episode("1", geodesic_distance=4.0), *odd], -1, seed=0)
    assert (rows["episode_id"][:], rows["start_distance"][:]) == (["1"], [4.0])
    assert "3 episodes are left out: they have no positive info.geodesic_distance: 2, 3, 4" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no episode has info\.geodesic_distance"):
        rows_for_walks(odd, -1, seed=0)
