"""One of two processes with ZeRO-3: what it holds of policy and reference, and what is left when a training is over.

torchrun --nproc_per_node=2 tests/trainers/parts_worker.py <config folder> <overrides of vlnr1_rft_recorded>
"""

import sys
import weakref

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def parts(model):
    """(numbers held here, numbers of the whole model) of its parameters."""
    held = sum(parameter.numel() for parameter in model.parameters())  # what is gathered
    return held + sum(p.ds_tensor.numel() for p in model.parameters()), sum(p.ds_numel for p in model.parameters())


def train(config, start):
    """Make the trainer and step; returns a weak reference to its model."""
    from habitat_vlnr1.lvlm import checkpoint
    from habitat_vlnr1.trainers import fitting, rft_fit

    load = checkpoint.load

    def loaded(*args, **kwargs):
        model, processor = load(*args, **kwargs)
        held, whole = parts(model)
        assert whole / 2 <= held < 0.6 * whole, (held, whole)
        return model, processor

    checkpoint.load = loaded
    task = rft_fit.Recorded(fitting.open_records(config, [("embedded", "train")]), [2, 9], [1])
    trainer = rft_fit.make_trainer(config, start, None, task)
    checkpoint.load = load
    held, whole = parts(trainer.ref_model)
    assert whole / 2 <= held < 0.6 * whole, (held, whole)
    fitting.optimise(trainer, None)
    return weakref.ref(trainer.accelerator.unwrap_model(trainer.model))


def main() -> None:
    torch.set_num_threads(1)
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)
    from habitat_baselines.config.default import get_config
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    from habitat_vlnr1.lvlm import checkpoint
    from habitat_vlnr1.register import register
    from habitat_vlnr1.trainers.fitting import check_start, join_processes, nothing_left
    from habitat_vlnr1.trainers.processes import by_one

    register()
    config = get_config("vlnr1_rft_recorded.yaml", sys.argv[2:], sys.argv[1])
    state = join_processes(config)
    start = check_start(config)
    with nothing_left():
        model = train(config, start)
    assert not is_deepspeed_zero3_enabled() and model() is None
    # As DAgger does between two rounds: one process loads, the others do not take part.
    whole = by_one("loads", lambda: sum(p.numel() for p in checkpoint.load(start)[0].parameters()))
    print(f"process {state.process_index}: {whole} numbers", flush=True)


if __name__ == "__main__":
    main()
