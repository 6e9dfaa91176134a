"""How much faster an evaluation is than with stock generation in one environment, in one run on one machine.

    python benchmarks/evaluation.py --json evaluation.json                 # the quick start's checkpoint, 100 episodes
    python benchmarks/evaluation.py --episodes 40 --environments 2 --runs 1

The row `vlnr1_sft` alone is walked. `stock` generates with Transformers alone, in one environment that is told every
action and renders every frame; `ours` is the evaluation as configured, in so many environments. Simulators start
anew for each, with no scene loaded, and the time counts from the first reset to the last line. Ways take turns, so
that what else the machine does hits all of them; CPU seconds are those of the process and of its simulators. Walks are
compared: all ways must take the same actions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from habitat_baselines.common.obs_transformers import apply_obs_transforms_obs_space, get_active_obs_transforms
from habitat_baselines.config.default import get_config
from omegaconf import DictConfig

from benchmarks.decoding import as_transformers_made_it
from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import edited, plain
from habitat_vlnr1.evaluation.evaluator import choose_episodes
from habitat_vlnr1.evaluation.policy_run import PolicyRun
from habitat_vlnr1.evaluation.rows import Row
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Answer
from habitat_vlnr1.observations import EXPERT
from habitat_vlnr1.policies.vlnr1 import VLNR1Policy
from habitat_vlnr1.register import register
from habitat_vlnr1.sim.env_factory import VLNVectorEnvFactory, make_scenes
from habitat_vlnr1.trainers.base import use_cores

CONFIGS = str(Path(__file__).parents[1] / "configs" / "trainer")
CPU = torch.device("cpu")


class StockPolicy(VLNR1Policy):
    """Asks with Transformers' `generate` and nothing else, and says one action at a time."""

    ahead: Any = property()  # there is none
    asks_every: Any = property()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decoder.decode = self._generate  # type: ignore[method-assign]  # of this decoder alone

    def _generate(self, prompts: Any, *args: Any, **kwargs: Any) -> list[Answer]:
        decoder: ActionDecoder = self.decoder
        encoder, model = decoder.encoder, decoder.model
        longest = max(len(encoder.answer_ids([action] * self.execute_horizon)) for action in Action)
        batch = encoder.prompts([decoder._query(prompt) for prompt in prompts], model.device, single_slot=False)
        generate: Any = getattr(model, "generate")  # noqa: B009 - PreTrainedModel alone has none
        with torch.inference_mode(), as_transformers_made_it(model):
            out = generate(**batch, max_new_tokens=longest, do_sample=False, eos_token_id=encoder.end_id)
        return [decoder._read(row) for row in out[:, batch["input_ids"].shape[1] :].tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100, help="chosen evenly over the split")
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 2, 3, 4], help="of ours")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("overrides", nargs="*", help="of the config, as on the command line of vlnr1_sft")
    options = parser.parse_args()
    register()
    overrides = [f"habitat_baselines.test_episode_count={options.episodes}", "vlnr1.eval.videos=0", *options.overrides]
    config = get_config("vlnr1_sft.yaml", overrides, CONFIGS)
    config = edited(config, **{"habitat.dataset.split": config.habitat_baselines.eval.split})
    make_scenes(config)
    use_cores(config.vlnr1.model.cpu_threads)
    ways = [("stock", 1), *(("ours", count) for count in options.environments)]
    measured: dict[tuple[str, int], list[dict[str, Any]]] = {way: [] for way in ways}
    walks: dict[tuple[str, int], Any] = {}
    for _ in range(options.runs):
        for way in ways:
            figures, walks[way] = evaluate(config, *way)
            measured[way].append(figures)
            told = f"{figures['rate']:.2f} episodes/s, {figures['cpu']:.0f} CPU ms each"
            print(f"{way[0]} in {way[1]}: {told}", flush=True)
    report(options, measured, walks)


def evaluate(config: DictConfig, way: str, environments: int) -> tuple[dict[str, Any], Any]:
    """Walk the episodes once; figures, and the actions of each."""
    changes: dict[str, Any] = {"habitat_baselines.num_environments": environments}
    if way == "stock":
        changes["vlnr1.eval.render_all"] = True
    with tempfile.TemporaryDirectory() as results:
        config = edited(config, **changes, **{"vlnr1.results_dir": results})
        envs = VLNVectorEnvFactory().construct_envs(config)
        try:
            return walk(config, envs, StockPolicy if way == "stock" else VLNR1Policy)
        finally:
            envs.close()


def walk(config: DictConfig, envs: Any, kind: type[VLNR1Policy]) -> tuple[dict[str, Any], Any]:
    transforms = get_active_obs_transforms(config)
    space = apply_obs_transforms_obs_space(envs.observation_spaces[0], transforms)
    policy = kind.from_config(config, space, envs.action_spaces[0])
    policy.decoder.forget()
    for index in range(envs.num_envs):
        if EXPERT in envs.observation_spaces[index].spaces:
            envs.call_at(index, "silence", {"uuid": EXPERT, "silent": True})
    chosen = choose_episodes(envs, config.habitat_baselines.test_episode_count)
    row = Row(policy, transforms, observations=frozenset(policy.needs), identity=policy.identity)
    run = PolicyRun("vlnr1_sft", row, envs, config, plain(config.vlnr1.protocol), {}, chosen, (0, 1), CPU)
    cpu, start = cpu_seconds(), time.perf_counter()
    run.run()
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    count = len(run.log.lines)
    walks = {key: (line["actions"], line["metrics"]) for key, line in run.log.lines.items()}
    return {"rate": count / seconds, "cpu": 1000 * cpu / count}, walks


def cpu_seconds() -> float:
    """Of this process and those below it."""
    own = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True)))


def report(options: argparse.Namespace, measured: Any, walks: Any) -> None:
    """Print the table, and write it."""
    stock, one = measured["stock", 1], measured.get(("ours", 1))
    rows = []
    print("way     in episodes/s  CPU ms   against stock  against ours in 1  same walks")
    for (way, count), figures in measured.items():
        row: dict[str, Any] = {"way": way, "environments": count}
        row |= {key: round(statistics.median(each[key] for each in figures), 2) for key in figures[0]}
        for name, other in (("stock", stock), ("one", one)):
            if other:
                ratios = [a["rate"] / b["rate"] for a, b in zip(figures, other, strict=True)]
                row |= {f"{name}_min": round(min(ratios), 2), f"{name}_median": round(statistics.median(ratios), 2)}
        own, told = walks[way, count], walks["ours", options.environments[0]]
        row["same_walks"] = sum(own[key] == told.get(key) for key in own) / len(own)
        rows.append(row)
        ratios = [f"{row.get(f'{name}_min', 0):.2f} / {row.get(f'{name}_median', 0):.2f}" for name in ("stock", "one")]
        print(
            f"{way:6} {count:3} {row['rate']:10.2f} {row['cpu']:7.0f} {ratios[0]:>15} {ratios[1]:>18}  "
            f"{row['same_walks']:.0%}"
        )
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
