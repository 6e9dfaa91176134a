"""Memory and what is left behind over a long run: thousands of episodes evaluated, tens of thousands of rows read.

    python benchmarks/soak.py                        # after the quick start; some 20 minutes on two cores
    python benchmarks/soak.py --episodes 200 --rows 2000
    python benchmarks/soak.py --rows 0 --checkpoint <folder> vlnr1/task=r2r vlnr1/protocol=r2r vlnr1/memory=long_short

The first part runs Habitat's entry point on a task of its own with that many unseen episodes (houses are made first),
or on the one that the given settings name, with the newest checkpoint of the quick start and `forward_only`; the
second reads rows as SFT's DataLoader does. The resident memory of the command and of all its workers is sampled every
second. Printed: memory after half of the run, when caches are full, against memory near its end, open files, and the
processes and shared memory that are still there afterwards. A plot `soak.png` and the samples `soak.json` go into the
output folder; status 1 if memory grew by more than a tenth, or something was left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
from habitat_baselines.config.default import get_config

from habitat_vlnr1.register import register
from habitat_vlnr1.sim.env_factory import make_scenes

CONFIGS = str(Path(__file__).parents[1] / "configs" / "trainer")
RUN = [sys.executable, "-m", "habitat_baselines.run", "--config-name=vlnr1_sft", "habitat_baselines.evaluate=True"]
GROWTH = 1.1
MB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--environments", type=int, default=2)
    parser.add_argument("--checkpoint", default="data/vlnr1/quickstart/checkpoints", help="folder or hub id")
    parser.add_argument("--data", default="data/vln_ego/embedded/train", help="exported VLN-Ego, for the rows")
    parser.add_argument("--output", type=Path, default=Path("data/vlnr1/soak"))
    parser.add_argument("settings", nargs="*", help="of the evaluated task; none: a task of generated houses")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)  # the second part's own process
    options = parser.parse_args()
    if options.read:
        read_rows(options)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    register()
    make_scenes(get_config("vlnr1_sft.yaml", task(options), CONFIGS))  # not a part of what is watched
    reading = [sys.executable, __file__, "--read", "--rows", str(options.rows)]
    reading += ["--checkpoint", options.checkpoint, "--data", options.data]
    parts = {"evaluation": watch(evaluation(options), options.output / "evaluation.log")}
    if options.rows:
        parts[f"{options.rows} rows read"] = watch(reading, options.output / "rows.log")
    (options.output / "soak.json").write_text(json.dumps(parts))
    plot(parts, options.output / "soak.png")
    print(f"plot: {options.output / 'soak.png'}")
    sys.exit(0 if all([tell(name, part) for name, part in parts.items()]) else 1)


def task(options: argparse.Namespace) -> list[str]:
    """Settings of houses with so many unseen episodes, or the given ones."""
    if options.settings:
        return options.settings
    houses = 25
    return [
        f"vlnr1.task.name=soak_{options.episodes}",
        "vlnr1.task.scenes.train_scenes=1",
        "vlnr1.task.scenes.train_episodes_per_scene=1",
        "vlnr1.task.scenes.val_seen_episodes=0",
        f"vlnr1.task.scenes.val_unseen_scenes={houses}",
        f"vlnr1.task.scenes.val_unseen_episodes_per_scene={-(-options.episodes // houses)}",
    ]


def evaluation(options: argparse.Namespace) -> list[str]:
    """The command that evaluates all of them."""
    return [
        *RUN,
        *task(options),
        f"vlnr1.checkpoint={options.checkpoint}",
        f"vlnr1.run_dir={options.output / 'run'}",
        f"vlnr1.results_dir={options.output / 'run' / time.strftime('%Y%m%d-%H%M%S')}",
        f"habitat_baselines.num_environments={options.environments}",
        "~vlnr1.eval.policies.random",
        "~vlnr1.eval.policies.oracle",
        "~vlnr1.eval.policies.vlnr1_sft_blind",
    ]


def watch(command: list[str], log: Path) -> dict:
    """Run a command to its end; its memory and open files over time, and what it leaves behind."""
    shared = shared_memory()
    began, samples, seen = time.monotonic(), [], {}
    with log.open("w") as out:
        process = psutil.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while process.poll() is None:
            sample = {"seconds": round(time.monotonic() - began, 1), "rss": 0, "files": 0, "processes": 0}
            try:
                family = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            for one in family:
                try:
                    sample["rss"] += one.memory_info().rss
                    sample["files"] += one.num_fds()
                    sample["processes"] += 1
                    seen[one.pid] = one
                except psutil.NoSuchProcess:
                    continue
            samples.append(sample)
            time.sleep(1)
    _, left = psutil.wait_procs(seen.values(), timeout=10)  # the fork server notices the end of its parent late
    left = [one for one in left if not has_ended(one)]
    return {
        "status": process.wait(),
        "log": str(log),
        "samples": samples,
        "processes_left": [str(one) for one in left],
        "shared_memory_left": sorted(shared_memory() - shared),
    }


def shared_memory() -> set[str]:
    """What there is that no living process has mapped, as other commands have their semaphores."""
    used: set[int] = set()
    for file in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        used |= {int(line.split()[4]) for line in lines if "/dev/shm/" in line}  # the inode: a name may be another
    return {entry.name for entry in os.scandir("/dev/shm") if entry.inode() not in used}


def has_ended(process: psutil.Process) -> bool:
    """A zombie has too: it only waits for the system to take note."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def tell(name: str, part: dict) -> bool:
    """Print a part's figures; whether they are as they should be."""
    samples = part["samples"]
    early, late = (samples[len(samples) * start // 100 : len(samples) * (start + 10) // 100 + 1] for start in (50, 85))
    before, after = (sorted(sample["rss"] for sample in some)[len(some) // 2] for some in (early, late))
    files = max(sample["files"] for sample in early), max(sample["files"] for sample in late)
    left = [*part["processes_left"], *part["shared_memory_left"]]
    print(
        f"{name} in {samples[-1]['seconds']:.0f} s, status {part['status']}: median RSS {before / MB:.0f} MB at "
        f"half, {after / MB:.0f} MB near the end (× {after / before:.2f}), at most "
        f"{max(sample['rss'] for sample in samples) / MB:.0f} MB; open files {files[0]} and {files[1]}; "
        f"left behind: {left or 'nothing'}"
    )
    return part["status"] == 0 and after <= GROWTH * before and not left


def plot(parts: dict[str, dict], picture: Path) -> None:
    """Memory over time, a panel for each part."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (name, part) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts.items(), strict=True):
        seconds, sizes = zip(*((sample["seconds"], sample["rss"] / MB) for sample in part["samples"]), strict=True)
        axes.plot(seconds, sizes)
        axes.set(title=name, xlabel="seconds", ylabel="MB resident, all processes", ylim=(0, None))
    figure.savefig(picture, dpi=110)


def read_rows(options: argparse.Namespace) -> None:
    """Read so many rows in two worker processes, as SFT does, over and over the data."""
    from torch.utils.data import DataLoader

    from habitat_vlnr1.lvlm import checkpoint
    from habitat_vlnr1.lvlm.inputs import PromptEncoder, SFTCollator
    from habitat_vlnr1.memory import make_memory
    from habitat_vlnr1.prompt import get_template
    from habitat_vlnr1.records import VLNEgo

    path = checkpoint.resolve(options.checkpoint)
    card = checkpoint.read_card(path)
    assert card is not None, f"{path}: no card, so not of this project's training"
    _, processor = checkpoint.load(path)
    ego = VLNEgo(options.data)
    records = ego.records(make_memory(**card.memory), card.num_actions)
    encoder = PromptEncoder(
        processor, get_template(card.template), card.num_actions, card.space, max_pixels=card.max_pixels
    )
    rows: Any = [{"index": [number]} for number in islice(cycle(range(len(records))), options.rows)]
    loader: DataLoader[Any] = DataLoader(rows, 8, num_workers=2, collate_fn=SFTCollator(encoder, records.__getitem__))
    tokens = sum(int(batch["attention_mask"].sum()) for batch in loader)
    print(f"{len(rows)} rows, {tokens} tokens")


if __name__ == "__main__":
    main()
