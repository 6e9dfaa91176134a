"""Two processes in which one works for longer than a collective may wait, then fails at its work.

torchrun --nproc_per_node=2 tests/trainers/processes_worker.py
"""

import time
from datetime import timedelta

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from habitat_vlnr1.errors import RunError
from habitat_vlnr1.trainers import processes

TIMEOUT = 4.0


def fail():
    raise RunError("the disk is full")


def main() -> None:
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    processes.SAY_AFTER = 1.0
    state = PartialState(cpu=True)

    def work():
        time.sleep(2 * TIMEOUT)
        return [state.process_index, "done"]

    assert processes.by_one("sleeps", work) == [0, "done"]
    assert processes.by_one("says where", lambda: state.process_index, on_each_machine=True) == 0
    state.wait_for_everyone()  # collectives still work
    try:
        processes.by_one("writes", fail)
    except RunError as error:
        print(f"process {state.process_index} ends: {error}", flush=True)


if __name__ == "__main__":
    main()
