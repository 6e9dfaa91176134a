"""A toy environment to evaluate in: corridors along x, and Habitat's VectorEnv over them in this process."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from gym import spaces
from omegaconf import OmegaConf

import habitat_vlnr1.policies.mixture  # noqa: F401  # registers MixturePolicy
from habitat_vlnr1.episode_log import read_episodes
from habitat_vlnr1.evaluation.evaluator import VLNR1Evaluator
from habitat_vlnr1.policies.scripted import OraclePolicy

SPACE = spaces.Dict(
    {
        "rgb": spaces.Box(0, 255, (8, 8, 3), np.uint8),
        "vlnr1_instruction": spaces.Box(0, 255, (16,), np.uint8),
        "vlnr1_clock": spaces.Box(0, 2**62, (2,), np.int64),
        "vlnr1_expert": spaces.Box(0, 3, (1,), np.int64),
    }
)
FOUR = spaces.Discrete(4)
ROLLOUTS = itertools.count(1)


class Corridor:
    """A worker: a corridor along x in which the goal is `goal` steps ahead; the interface of VLNR1GymEnv."""

    def __init__(self, goals):
        self.all = [
            SimpleNamespace(
                episode_id=str(number),
                scene_id=scene,
                trajectory_id=number,
                instruction=SimpleNamespace(instruction_text=f"go {number}"),
                start_position=[0, 0, 0],
                reference_path=[[0, 0, 0], [goal * 0.25, 0, 0]],
                goals=[SimpleNamespace(position=[goal * 0.25, 0, 0])],
                goal=goal,
            )
            for (scene, number), goal in goals.items()
        ]
        self.kept, self.at, self.rollout, self.expert = self.all, -1, 0, True

    def episode_keys(self):
        return [(e.scene_id, e.episode_id) for e in self.all]

    def keep_episodes(self, keys):
        self.kept, self.at = [e for e in self.all if (e.scene_id, e.episode_id) in keys], -1

    def silence(self, uuid, silent):
        assert uuid == "vlnr1_expert"
        self.expert = not silent

    def current_episode(self, all_info):
        return self.kept[self.at]

    def pose(self):
        return [self.x * 0.25, 0.0, 0.0, 0.0]

    def why_unusable(self):
        return "no way from start to goal" if self.kept[self.at].goal > 50 else None

    def topdown_map(self):
        return {"free": np.ones((20, 40), bool), "origin": [-1.0, -0.5], "meters_per_pixel": 0.05}

    def reset(self):
        self.at, self.x, self.steps, self.rollout = (self.at + 1) % len(self.kept), 0, 0, next(ROLLOUTS)
        return self.observe()

    def observe(self):
        told = np.zeros(16, np.uint8)
        text = self.kept[self.at].instruction.instruction_text.encode()
        told[: len(text)] = list(text)
        return {
            "rgb": np.full((8, 8, 3), self.x, np.uint8),
            "vlnr1_instruction": told,
            "vlnr1_clock": np.array([self.rollout, self.steps]),
            "vlnr1_expert": np.array([int(self.expert and self.x < self.kept[self.at].goal)]),
        }

    def step(self, action):
        self.steps += 1
        self.x += action == 1
        goal = self.kept[self.at].goal
        success = float(action == 0 and abs(goal - self.x) < 2)
        distance = abs(goal - self.x) * 0.25 if goal < 50 else np.inf
        info = {"success": success, "distance_to_goal": distance, "vlnr1_trace": self.pose(), "top_down_map": {}}
        done = action == 0 or self.steps == 8
        return (self.reset() if done else self.observe()), 0.0, done, info


class Envs:
    """Habitat's VectorEnv over corridors, in this process."""

    def __init__(self, *workers):
        self.awake, self.paused, self.sent = list(workers), [], {}
        self.observation_spaces = [SPACE for _ in workers]

    @property
    def num_envs(self):
        return len(self.awake)

    def call_at(self, index, name, arguments=None):
        return getattr(self.awake[index], name)(**(arguments or {}))

    def reset_at(self, index):
        return [self.awake[index].reset()]

    def async_step_at(self, index, action):
        self.sent[index] = action

    def wait_step_at(self, index):
        return self.awake[index].step(self.sent.pop(index))

    def post_step(self, observations):
        return observations

    def pause_at(self, index):
        self.paused.append((index, self.awake.pop(index)))

    def resume_all(self):
        for index, worker in reversed(self.paused):
            self.awake.insert(index, worker)
        self.paused = []


class Breaking(OraclePolicy):
    """An oracle that fails after some steps."""

    steps = 9

    def actions(self, observations):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt
        return super().actions(observations)


def two_environments():
    return Envs(Corridor({("a", 1): 3, ("a", 2): 4, ("a", 10): 2}), Corridor({("b", 1): 5}))


def make_config(folder, policies, **changes):
    config = {
        "habitat": {
            "seed": 1,
            "dataset": {"type": "VLN-CE-v1", "data_path": f"{folder}/{{split}}.json.gz", "scenes_dir": "scenes/"},
            "task": {"lab_sensors": {}},
            "environment": {"max_episode_steps": 8},
        },
        "habitat_baselines": {
            "test_episode_count": -1,
            "video_fps": 4,
            "tensorboard_dir": f"{folder}/tb",
            "eval": {"split": "val"},
            "rl": {"policy": {"main_agent": {"name": "Model"}}},
        },
        "vlnr1": {
            "task": {"name": "corridors"},
            "protocol": {"name": "toy", "forward_step": 0.25, "turn_angle": 30, "success_distance": 0.5},
            "eval": {
                "policies": policies,
                "forward_steps": 3,
                "videos": 0,
                "report_mb": 1,
                "together": None,
                "render_all": False,
                "shard": None,
                "num_shards": None,
            },
            "memory": {"strategy": "uniform"},
            "results_dir": str(folder),
        },
    }
    return OmegaConf.merge(config, OmegaConf.from_dotlist([f"{k}={v}" for k, v in changes.items()]))


class Scalars(dict):
    def add_scalar(self, name, value, step):
        self[name] = value


def evaluate(config, envs, policy=None, transforms=(), writer=None):
    agent = SimpleNamespace(actor_critic=policy or torch.nn.Identity(), agent_name="main_agent", eval=lambda: None)
    spec = SimpleNamespace(observation_space=SPACE, action_space=FOUR)
    scalars = writer or Scalars()
    summaries = VLNR1Evaluator().evaluate_agent(
        agent, envs, config, 0, 7, scalars, torch.device("cpu"), list(transforms), spec, set()
    )
    return {summary["policy"]: summary for summary in summaries}, scalars


def lines(folder, policy):
    return read_episodes(folder / policy / "val" / "episodes.jsonl")
