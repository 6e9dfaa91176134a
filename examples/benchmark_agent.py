"""Evaluate the agent with Habitat's own `habitat.Benchmark`, as VLN-CE's and the Habitat challenge's users know it.

After `make quickstart`, in the repository's folder:

    .venv/bin/python examples/benchmark_agent.py --episodes 20

With a `habitat.Agent` of your own in the place of ours, it walks the same episodes under the same measures.
"""

import argparse
import tempfile
from pathlib import Path

import habitat
from omegaconf import OmegaConf

from habitat_vlnr1.agent import VLNR1Agent

CONFIGS = Path(__file__).resolve().parent.parent / "configs/habitat"


def benchmark(task: str, overrides: list[str]) -> habitat.Benchmark:
    """Of a config of ours; Benchmark wants a file, and keys that refer to no others."""
    config = habitat.get_config(task, overrides)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.yaml"
        OmegaConf.save({"habitat": OmegaConf.to_container(config.habitat, resolve=True)}, file)
        return habitat.Benchmark(str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="data/vlnr1/quickstart/checkpoints", help="folder, run or hub id")
    parser.add_argument("--config", default=str(CONFIGS / "vlnr1_benchmark.yaml"), help="the task")
    parser.add_argument("--episodes", type=int, help="how many, in Habitat's order; all if not given")
    parser.add_argument("overrides", nargs="*", help="of the config, such as habitat.dataset.split=val_seen")
    options = parser.parse_args()

    walks = benchmark(options.config, options.overrides)
    agent = VLNR1Agent.from_checkpoint(options.checkpoint)
    for name, value in walks.evaluate(agent, options.episodes).items():
        print(f"{name:24} {value:.3f}")


if __name__ == "__main__":
    main()
