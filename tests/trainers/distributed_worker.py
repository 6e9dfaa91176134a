"""One of several processes on a machine without a GPU.

    torchrun --nproc_per_node=2 tests/distributed_worker.py <config name> <config folder> <overrides>

Accelerate takes a machine without a GPU for one without processes, whatever torchrun says; here it is told otherwise.
"""

import sys

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def main() -> None:
    torch.set_num_threads(1)
    if torch.distributed.is_torchelastic_launched():
        PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)
    from habitat_baselines.common.baseline_registry import baseline_registry
    from habitat_baselines.config.default import get_config

    from habitat_vlnr1.register import register

    register()
    name, configs, *overrides = sys.argv[1:]
    config = get_config(f"{name}.yaml", overrides, configs)
    baseline_registry.get_trainer(config.habitat_baselines.trainer_name)(config).train()


if __name__ == "__main__":
    main()
