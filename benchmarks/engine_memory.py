"""Memory of full fine-tuning on several processes, engine by engine, against the dry run's arithmetic.

    python benchmarks/engine_memory.py [--size 0.5B | 0.1B] [--engines ZeRO-2 ZeRO-3 offload] [--json out.json]

A Qwen2-VL of that many parameters with random weights in bfloat16 takes two SFT steps of one short record each, by
its own trainer, on two gloo processes without a GPU. There host and device are one memory, so what the plan gives a
GPU is looked for in the process: its anonymous and shared pages, less what it had before the model was loaded. One row
an engine: GiB of the plan, of the process after loading, between two steps and at most during one (most of the
processes), and the last over the plan; under them what the plan leaves out. `offload` is ZeRO-3 with
`offload_optimizer`, with PyTorch's Adam instead of DeepSpeed's, which would have to be compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import AutoConfig, PretrainedConfig, TrainerCallback

from benchmarks.narrow import wide_products

ROOT = Path(__file__).parents[1]
GIB = 2**30
PROCESSES, STEPS = 2, 2
EVERY = 0.01  # seconds between two looks at a process's memory
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "0.5B": (
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 20, "num_attention_heads": 7,
         "num_key_value_heads": 1, "vocab_size": 151936},
        {"depth": 16, "embed_dim": 640, "num_heads": 10, "mlp_ratio": 4, "hidden_size": 896},
    ),
    "0.1B": (
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 32768},
        {"depth": 12, "embed_dim": 480, "num_heads": 8, "mlp_ratio": 4, "hidden_size": 512},
    ),
}  # fmt: skip
"""Language model and vision tower, Qwen2-VL's scaled down."""
ENGINES = {
    "DDP": ["vlnr1.model.dtype=float32"],
    "ZeRO-2": ["vlnr1/deepspeed=zero2"],
    "ZeRO-3": ["vlnr1/deepspeed=zero3"],
    "offload": [
        *("vlnr1/deepspeed=zero3", "+vlnr1.deepspeed.zero_optimization.offload_optimizer={device: cpu}"),
        "+vlnr1.deepspeed.zero_force_ds_cpu_optimizer=false",
    ],
}


def shape(size: str) -> PretrainedConfig:
    """The config of a model."""
    text, vision = ({**part, "tie_word_embeddings": True} for part in SIZES[size])
    return AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=vision, tie_word_embeddings=True)


def settings(engine: str, folder: Path) -> DictConfig:
    """The SFT config of an engine; it works in `folder`."""
    from habitat_baselines.config.default import get_config

    from habitat_vlnr1.register import register

    register()
    sft = {"max_steps": STEPS, "save_steps": 1000, "logging_steps": 1, "per_device_train_batch_size": 1,
           "gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "steps_per_row": 1,
           "bf16": True}  # fmt: skip
    return get_config(
        "vlnr1_sft.yaml",
        [
            *(f"vlnr1.sft.{key}={value}" for key, value in sft.items()),
            *("vlnr1/model=qwen2_vl_2b", f"vlnr1.model.path={folder / 'model'}", "vlnr1.model.image_size=56"),
            *("vlnr1.model.cpu_threads=1", f"vlnr1.data.root={folder}", "vlnr1.data.sources=[walks]"),
            *(f"vlnr1.run_dir={folder / engine}", "vlnr1/memory=uniform_8", *ENGINES[engine]),
        ],
        str(ROOT / "configs/trainer"),
    )


def make(size: str, folder: Path) -> None:
    """The model and what it is trained on."""
    from benchmarks.gpu import INSTRUCTION, make_walks
    from habitat_vlnr1.config import action_space, model_card
    from habitat_vlnr1.lvlm import checkpoint
    from habitat_vlnr1.lvlm.tiny import build_shape

    make_walks(folder / "walks/train", 2)
    config = settings("ZeRO-3", folder)
    model, processor = build_shape(shape(size), [INSTRUCTION], space=action_space(config), image_size=56)
    checkpoint.save(folder / "model", model, processor, model_card(config))


class Gauge(threading.Thread):
    """The most memory that this process has had in each phase: pages that belong to no file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.phase, self.peaks = "start", {"start": 0}
        self.start()

    def run(self) -> None:
        while True:
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.now())
            time.sleep(EVERY)

    @staticmethod
    def now(kinds: tuple[str, ...] = ("RssAnon", "RssShmem")) -> int:
        """Bytes of such pages."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(kinds))

    def enter(self, phase: str) -> int:
        """Begin a phase; returns what the process has at that moment."""
        self.phase = phase
        return self.now()


class Steps(TrainerCallback):
    """Tells a gauge when a step begins and ends, and ends the process after the last one, before anything is saved."""

    def __init__(self, gauge: Gauge):
        self.gauge = gauge
        self.between: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gauge.enter(f"step {state.global_step + 1}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.between.append(self.gauge.enter("between"))
        if state.global_step == STEPS:
            raise StopIteration


def worker(engine: str, folder: Path) -> None:
    """One process: trains, and leaves what it has seen in `<engine>-<rank>.json`."""
    from habitat_vlnr1.doctor.planning import make_plan
    from habitat_vlnr1.trainers import fitting, sft_fit

    config = settings(engine, folder)
    state = fitting.join_processes(config)
    plan = make_plan(config, "sft")
    records = fitting.open_records(config, [("walks", "train")])
    gauge = Gauge()
    callback = Steps(gauge)
    before = gauge.enter("load")
    trainer = sft_fit.make_trainer(config, str(folder / "model"), None, records, sft_fit.trained_card(config, "sft"))
    loaded = gauge.enter("set-up")
    trainer.add_callback(callback)
    with suppress(StopIteration), wide_products():
        trainer.train()
    assert plan.size is not None and plan.activations is not None and plan.host is not None
    memory = plan.memory[engine.replace("offload", "ZeRO-3")]
    peaks = {phase: peak - before for phase, peak in gauge.peaks.items()}
    seen = {
        "parameters": plan.size.parameters,
        "plan": {**vars(memory), "activations": plan.activations[1]},
        "planned_host": plan.host.total,
        "program": before,
        "loaded": loaded - before,
        "between": max(callback.between) - before,
        "peaks": peaks,
        "shared": gauge.now(("RssShmem",)),
        "tokens": plan.tokens.sample,
        "peak": max(peak for phase, peak in peaks.items() if phase.startswith("step")),
    }
    (folder / f"{engine}-{state.process_index}.json").write_text(json.dumps(seen))
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's and gloo's threads are of no more use


def measure(engine: str, folder: Path) -> dict[str, Any]:
    """Run an engine; what the process that took most has seen."""
    torchrun = [str(Path(sys.executable).with_name("torchrun")), f"--nproc-per-node={PROCESSES}", "--standalone"]
    command = [*torchrun, __file__, "--worker", engine, "--home", str(folder)]
    # Ninja, with which DeepSpeed builds, lies beside Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / f"{engine}.log").open("w") as log:
        status = subprocess.run(
            command, env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        ).returncode
    files = sorted(folder.glob(f"{engine}-*.json"))
    if status or len(files) < PROCESSES:
        print((folder / f"{engine}.log").read_text()[-3000:])
        raise SystemExit(f"{engine}: status {status}, see above")
    return max((json.loads(file.read_text()) for file in files), key=lambda seen: seen["peak"])


def row(engine: str, seen: dict[str, Any]) -> str:
    """A row of the table."""
    planned = seen["plan"]
    total = sum(planned.values())
    parts = (*(planned[part] for part in ("weights", "gradients", "optimizer", "host", "activations")), total)
    found = (seen["loaded"], seen["between"], seen["peak"])
    numbers = " | ".join(f"{size / GIB:.2f}" for size in (*parts, *found))
    host = (seen["program"] + seen["peak"]) / GIB
    return f"| {engine} | {numbers} | {seen['peak'] / total:.2f} | {host:.2f} of {seen['planned_host'] / GIB:.2f} |"


HEAD = (
    "| engine | weights | gradients | optimizer | offloaded | activations | plan | loaded | between steps | at most | "
    "ratio | process of plan |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5B")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["ZeRO-2", "ZeRO-3", "offload"])
    parser.add_argument("--home", type=Path, help="where it works; default: a folder that goes again")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.home)
    with tempfile.TemporaryDirectory() as made:
        home = (options.home or Path(made)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "model").is_dir():
            make(options.size, home)
        print(HEAD)
        found = {}
        for engine in options.engines:
            found[engine] = measure(engine, home)
            print(row(engine, found[engine]), flush=True)
    one = found[options.engines[0]]
    logits = one["tokens"] * SIZES[options.size][0]["vocab_size"] * 4
    print(
        f"{one['parameters']:,} parameters, {PROCESSES} processes, samples of {one['tokens']} tokens; GiB a process. "
        f"Not planned: shared memory of the collectives ({one['shared'] / GIB:.2f}), and logits of every token, which "
        f"the loss on a GPU never holds ({logits / GIB:.2f} for each copy in float32); glibc keeps some of "
        "what was freed"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
