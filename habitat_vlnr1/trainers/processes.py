"""What one of several processes does for all, however long it takes."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from habitat_vlnr1.errors import RunError

LOOK_AGAIN = 0.5
"""Seconds between two looks whether the work is done."""
SAY_AFTER = 10.0
"""Seconds after which those who wait say what for."""
_FAILED = "failed"
_numbers = itertools.count()  # every process asks for the same works in the same order


def by_one(what: str, work: Callable[[], Any], *, on_each_machine: bool = False) -> Any:
    """Let one process work, or one of each machine, and give all what it has found; alone it is a plain call.

    The others look into torch's store until it is done. In a collective they would end the job after `ddp_timeout`
    (half an hour).

    Args:
        what: "merges x": for the line that says who waits for what.
        work: returns what JSON can hold.

    Raises:
        RunError: in those who wait, when the work has failed.
    """
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes == 1:
        return work()
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    first_here = state.process_index - state.local_process_index
    worker = first_here if on_each_machine else 0
    key = f"vlnr1/{next(_numbers)}/{worker}"
    if state.process_index != worker:
        speaks = state.process_index == first_here + (worker == first_here)  # one of each machine
        return _wait(store, key, f"process {worker}, which {what}", f"process {state.process_index}", speaks)
    try:
        result = work()
        store.set(key, json.dumps(result))
    except BaseException:
        store.set(key, _FAILED)
        raise
    return result


def _wait(store: Any, key: str, whom: str, who: str, speaks: bool) -> Any:
    since = time.monotonic()
    while not store.check([key]):
        if speaks and time.monotonic() - since > SAY_AFTER:
            print(f"{who} and those beside it wait for {whom}", flush=True)
            speaks = False
        time.sleep(LOOK_AGAIN)
    answer = store.get(key).decode()
    if answer == _FAILED:
        raise RunError(f"{who} has waited for {whom}: that has failed, and its own error says why")
    return json.loads(answer)
