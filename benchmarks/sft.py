"""How much faster an SFT step is than plain TRL's, in one run on one machine, and that the loss is the same.

    python benchmarks/sft.py --json sft.json                   # the tiny model's shape
    python benchmarks/sft.py --size 30M --memories long_short

Both trainers start from the same random weights and get the same records: plain TRL one in a row, through its own
collator; ours as configured, `steps_per_row` of an episode in a row. A step is reading and collating, forward,
backward and update, in CPU seconds of the process on a CPU (others hardly change them), else in seconds. FLOPs are
those of forward and backward, as torch.utils.flop_counter sees them: their ratio bounds what a step can gain where
arithmetic is all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from habitat_baselines.config.default import get_config
from omegaconf import DictConfig
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decoding import as_transformers_made_it
from habitat_vlnr1.config import action_space, records_of, template_of
from habitat_vlnr1.interchange.trl_rows import trl_row
from habitat_vlnr1.lvlm import checkpoint, tiny
from habitat_vlnr1.lvlm.inputs import IGNORED
from habitat_vlnr1.optimisation import sft_arguments
from habitat_vlnr1.records import Records, VLNEgo
from habitat_vlnr1.register import register
from habitat_vlnr1.trainers.sft_fit import make_trainer

CONFIGS = str(Path(__file__).parents[1] / "configs" / "trainer")
tiny.SIZES["30M"] = tiny.TinySize(4, 256, 4, 8, 512, 8, 4, 1792)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=tiny.SIZES, help="of the random weights")
    parser.add_argument("--memories", nargs="+", default=["long_short", "anchored", "first_and_last"])
    parser.add_argument("--ego", type=Path, default=Path("data/vln_ego/embedded/train"), help="whose records")
    parser.add_argument("--rows", type=int, default=4, help="of ours in a step")
    parser.add_argument("--steps-per-row", type=int, default=8, help="records of an episode in a row, at most")
    parser.add_argument("--steps", type=int, default=3, help="timed in each run, after one that is not")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    register()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    rows = []
    print("memory            tokens  TRL s  ours s  least  median  FLOPs  vision  language  loss")
    for memory in options.memories:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(compare(options, memory, folder))
    if options.json:
        settings = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": settings, "rows": rows}, indent=2) + "\n")


def compare(options: argparse.Namespace, memory: str, folder: str) -> dict[str, Any]:
    """One memory: ratios of time in each run, of FLOPs, and both losses; prints a line."""
    config = configured(options, memory, folder)
    records = records_of(config, [VLNEgo(options.ego)])
    start = random_weights(options, config, records, folder)
    ours: Any = make_trainer(config, start, None, records, checkpoint.ModelCard(space=action_space(config)))
    drawn = ours.train_dataset.shuffle(seed=0)["index"]
    batches = [drawn[n * options.rows : (n + 1) * options.rows] for n in range(options.steps + 1)]
    sides = (Ours(ours), Plain(config, start, records))
    counted = [side.count(batches[0]) for side in sides]
    losses = [side.step(batches[0]) for side in sides]
    times = [[[timed(side, batch) for batch in batches[1:]] for side in sides] for _ in range(options.runs)]
    ratios = [sum(plain) / sum(fast) for fast, plain in times]
    seconds = [statistics.median(sum(run[side]) / options.steps for run in times) for side in (0, 1)]
    flops = {part: counted[1][part] / counted[0][part] for part in counted[0]}
    row = {
        "memory": memory,
        "records": sum(map(len, batches[0])),
        "seconds": round(seconds[0], 3),
        "trl_seconds": round(seconds[1], 3),
        "ratio_min": round(min(ratios), 2),
        "ratio_median": round(statistics.median(ratios), 2),
        "gflops": {name: round(value / 1e9, 2) for name, value in counted[0].items()},
        "flops_ratio": {name: round(value, 2) for name, value in flops.items()},
        "losses": losses,
    }
    print(
        f"{memory:16} {row['records']:7} {seconds[1]:6.2f} {seconds[0]:7.2f} {row['ratio_min']:6} "
        f"{row['ratio_median']:7} {flops['all']:6.2f} {flops['vision']:7.2f} {flops['language']:9.2f}  "
        f"{losses[0]:.6f} and {losses[1]:.6f}",
        flush=True,
    )
    return row


def configured(options: argparse.Namespace, memory: str, folder: str) -> DictConfig:
    settings = {
        "run_dir": folder,
        "sft.per_device_train_batch_size": options.rows,
        "sft.steps_per_row": options.steps_per_row,
        "sft.keep_straight": 1.0,
        "task.scenes": "null",
    }
    overrides = [f"vlnr1/memory={memory}", *(f"vlnr1.{key}={value}" for key, value in settings.items())]
    return get_config("vlnr1_sft.yaml", overrides, CONFIGS)


def random_weights(options: argparse.Namespace, config: DictConfig, records: Records, folder: str) -> str:
    texts = {episode.instruction for episode in records.episodes}
    space, side = action_space(config), config.vlnr1.model.image_size
    model, processor = tiny.build_tiny(texts, space=space, size=options.size, image_size=side)
    card = checkpoint.ModelCard(space=space, template=config.vlnr1.prompt.template)
    return str(checkpoint.save(Path(folder) / "start", model, processor, card))


class Ours:
    """A step of the configured trainer."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)

    def collate(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        return self.trainer.data_collator([{"index": row} for row in rows])

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.trainer.compute_loss(self.trainer.model, batch)

    def step(self, rows: list[list[int]]) -> float:
        batch = {name: table.to(self.trainer.model.device) for name, table in self.collate(rows).items()}
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def count(self, rows: list[list[int]]) -> dict[str, float]:
        """FLOPs of forward and backward: of all, of the vision tower, and of the rest."""
        batch = {name: table.to(self.trainer.model.device) for name, table in self.collate(rows).items()}
        with FlopCounterMode(display=False) as counter:
            self.loss(batch).backward()
        self.optimizer.zero_grad()
        parts = {name: sum(some.values()) for name, some in counter.get_flop_counts().items()}
        vision = next((count for name, count in parts.items() if name.endswith(".visual")), 0)
        return {"all": parts["Global"], "vision": vision, "language": parts["Global"] - vision}


class Plain(Ours):
    """A step of TRL's own trainer and collator, on a model as Transformers made it."""

    def __init__(self, config: DictConfig, start: str, records: Records):
        self.records, self.template, self.space = records, template_of(config), action_space(config)
        model, processor = checkpoint.load(start, dtype="float32")
        data = Dataset.from_list([{"prompt": "", "completion": ""}])
        arguments = sft_arguments(config)
        arguments.remove_unused_columns = False
        self.context = as_transformers_made_it(model)
        self.context.__enter__()
        super().__init__(trl.SFTTrainer(model.train(), arguments, train_dataset=data, processing_class=processor))
        self.collator = trl.trainer.sft_trainer.DataCollatorForVisionLanguageModeling(
            processor, max_length=None, completion_only_loss=True
        )

    def collate(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        examples = []
        for number in [number for row in rows for number in row]:
            record = self.records[number]
            row = trl_row(record, self.template, self.space, Path())
            examples.append({**row, "images": [Image.open(str(frame)) for frame in record.frames]})
        batch = self.collator(examples)
        last = (batch["labels"] != IGNORED).long().cumsum(1).argmax(1)
        batch["labels"][torch.arange(len(last)), last] = IGNORED  # a line's end, which ours leaves out
        return dict(batch)


def timed(side: Ours, rows: list[list[int]]) -> float:
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    side.step(rows)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
