"""What a data set of R2R's and RxR's size costs where nothing is rendered, and what packing changes.

    python benchmarks/data_at_scale.py scale --episodes 10819 42000 --output /tmp/scale
    python benchmarks/data_at_scale.py pack --walks 400 --output /tmp/packed

`scale` writes VLN-Ego folders of so many episodes, three to a path, whose frames are links to one small JPEG, and
prints seconds and peak memory, each in a process of its own: reading the lines, the first check of the frames, the
next one, the index data set of SFT, and the doctor's look. `pack` writes the same walks loose and packed, and prints
files, bytes on disk, and rows a second through SFT's collator, with 0 and 2 DataLoader workers, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import Episode, VLNEgo

TWINS, STEPS, SCENES = 3, 55, 61
WORDS = " ".join(["turn left at the long table and go on"] * 4)
META: dict[str, Any] = {"split": "train", "protocol": {"name": "r2r", "forward_step": 0.25, "turn_angle": 15}}
SPACE = ActionSpace(0.25, 15)


def episodes(count: int) -> list[Episode]:
    """Three to a path, as R2R has them."""
    chance, made = random.Random(0), []
    for number in range(count):
        first = number - number % TWINS
        if number == first:
            actions = (*chance.choices((1, 2, 3), k=chance.randint(STEPS - 20, STEPS + 20)), 0)
            made.append(
                Episode(str(number), f"scene_{first % SCENES}", f"{number} {WORDS}", actions, {"trajectory_id": first})
            )
        else:
            owner = made[first]
            made.append(replace(owner, episode_id=str(number), instruction=f"{number} {WORDS}", frames_of=str(first)))
    return made


def make_linked(root: Path, count: int) -> None:
    """A folder whose frames are hard links to few files (a file system has a limit of links to one)."""
    root.mkdir(parents=True)
    (root / "meta.json").write_text(json.dumps({"format": 1, **META}))
    (root / "summary.json").write_text("{}")
    content, links, source = encode_jpeg(np.zeros((28, 28, 3), np.uint8), 92), 0, root
    with (root / "episodes.jsonl").open("w") as lines:
        for episode in episodes(count):
            if not episode.frames_of:
                (root / episode.folder).mkdir(parents=True)
                for step in range(len(episode.actions)):
                    if links % 30_000 == 0:
                        source = root / f"frame_{links}.jpg"
                        source.write_bytes(content)
                    os.link(source, root / episode.frame(step))
                    links += 1
            lines.write(json.dumps(episode.to_json()) + "\n")


# ------------------------------------------------------------------------------------------------------- scale
def read(root: Path) -> str:
    ego = VLNEgo(root)
    return f"{len(ego.episodes):,} episodes, {sum(len(e.actions) for e in ego.walked):,} frames"


def check(root: Path) -> str:
    VLNEgo(root).check_frames()
    return "all whole"


def index(root: Path) -> str:
    from habitat_vlnr1.trainers.mixture import navigation_rows

    rows, _ = navigation_rows(VLNEgo(root).records(make_memory("long_short"), 6))
    return f"{len(rows):,} rows"


def doctor(root: Path) -> str:
    from habitat_baselines.config.default import get_config

    from habitat_vlnr1.doctor.model_data import check_export

    configs = str(Path(__file__).parents[1] / "configs" / "trainer")
    places = [f"vlnr1.data.root={root.parent.parent}", "vlnr1/task=r2r", "vlnr1/protocol=r2r"]
    config = get_config("vlnr1_doctor.yaml", places, configs)
    return "; ".join(finding.text for finding in check_export(config, root.parent.name, root.name))


PARTS: dict[str, Callable[[Path], str]] = {
    "read": read, "first check": check, "next check": check, "index": index, "doctor": doctor,
}  # fmt: skip

NEEDED = {
    "index": ["habitat_vlnr1.trainers.mixture"],
    "doctor": ["habitat_baselines.config.default", "habitat_vlnr1.doctor.model_data", "habitat_vlnr1.register"],
}
"""Part → modules whose import takes seconds and memory of its own."""


def scale(options: argparse.Namespace) -> None:
    for count in options.episodes:
        root = Path(options.output) / f"scale_{count}" / "train"
        shutil.rmtree(root, ignore_errors=True)
        make_linked(root, count)
        for part in PARTS:
            command = [sys.executable, __file__, "part", part, str(root)]
            print(
                f"{count:>6} {part:12}",
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(),
            )


def run_part(name: str, root: str) -> None:
    """Do one part and print its seconds and the process's peak memory beyond its imports."""
    for module in NEEDED.get(name, ()):
        import_module(module)
    started, before = time.perf_counter(), peak()
    told = PARTS[name](Path(root))
    print(f"{time.perf_counter() - started:6.1f} s  peak {peak():5.0f} MB (before: {before:.0f})  {told}")


def peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


# ------------------------------------------------------------------------------------------------------- packing
def pack(options: argparse.Namespace) -> None:
    from habitat_vlnr1.lvlm.tiny import build_tiny

    made = [episode for episode in episodes(TWINS * options.walks) if not episode.frames_of]
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (40, options.side // 14, options.side // 14, 3), dtype=np.uint8)
    jpegs = [encode_jpeg(frame.repeat(14, 0).repeat(14, 1), 92) for frame in coarse]
    print(f"{np.mean([len(jpeg) for jpeg in jpegs]) / options.side**2:.2f} bytes a pixel")
    _, processor = build_tiny([WORDS], space=SPACE, image_size=56)
    roots = {name: Path(options.output) / name / "train" for name in ("loose", "packed")}
    for name, root in roots.items():
        shutil.rmtree(root, ignore_errors=True)
        started = time.perf_counter()
        writer = EpisodeWriter(root, META | ({"packed": True} if name == "packed" else {}))
        for episode in made:
            writer.write(episode, [jpegs[step % len(jpegs)] for step in range(len(episode.actions))])
        writer.close()
        files = [path for path in (root / "frames").rglob("*") if path.is_file()]
        blocks = sum(path.stat().st_blocks * 512 for path in files)
        seconds = time.perf_counter() - started
        print(f"{name:7} {len(files):7,} files  {blocks / 1e6:8.1f} MB on disk  written in {seconds:.1f} s")
    for workers in (0, 2):
        rates = {name: [] for name in roots}  # type: dict[str, list[float]]
        for _ in range(options.repeats):
            for name, root in roots.items():  # in turn, so that what else the machine does hits both
                rates[name].append(rate(root, processor, workers, options.rows))
        medians = {name: float(np.median(some)) for name, some in rates.items()}
        told = ", ".join(f"{name} {value:.1f} rows/s" for name, value in medians.items())
        print(f"{workers} workers: {told}, packed / loose {medians['packed'] / medians['loose']:.2f}")


def rate(root: Path, processor: Any, workers: int, rows: int) -> float:
    """Rows a second through SFT's collator, two a batch, in random order."""
    import torch
    from torch.utils.data import DataLoader

    from habitat_vlnr1.lvlm.inputs import PromptEncoder, SFTCollator
    from habitat_vlnr1.prompt import get_template

    records = VLNEgo(root).records(make_memory("long_short"), 6)
    chosen = random.Random(1).sample(range(len(records)), rows)
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, max_pixels=56**2)
    collator = SFTCollator(encoder, records.__getitem__)
    data: Any = [{"index": [number]} for number in chosen]
    loader = DataLoader(data, batch_size=2, collate_fn=collator, num_workers=workers)
    torch.set_num_threads(1)  # as each worker does
    started = time.perf_counter()
    for _ in loader:
        pass
    return rows / (time.perf_counter() - started)


def main() -> None:
    if sys.argv[1:2] == ["part"]:
        run_part(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    sized = commands.add_parser("scale")
    sized.add_argument("--episodes", type=int, nargs="+", default=[10_819, 42_000])
    sized.set_defaults(run=scale)
    packing = commands.add_parser("pack")
    packing.add_argument("--walks", type=int, default=400)
    packing.add_argument("--side", type=int, default=224, help="of the frames, pixels")
    packing.add_argument("--rows", type=int, default=200)
    packing.add_argument("--repeats", type=int, default=3)
    packing.set_defaults(run=pack)
    for command in (sized, packing):
        command.add_argument("--output", required=True, help="a folder; what is made there is left")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
