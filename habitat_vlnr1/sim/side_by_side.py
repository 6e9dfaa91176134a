"""Environments at work side by side, each until somebody has to decide for it.

Calls of environments wait for their processes; here each waits in a thread of its own, so that the main thread can
think about some environments while the others go on. Environments are grouped, and a group is answered when all of it
is back: what is asked together depends on the episodes alone, never on who was faster, so results can be repeated to
the last digit. One group of all waits for the slowest; groups of one never wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import pairwise
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def groups_of(members: Sequence[int], size: int) -> list[list[int]]:
    """Groups of at most `size`, as equal as can be, in order."""
    count = -(-len(members) // size)
    borders = [len(members) * number // max(count, 1) for number in range(count + 1)]
    return [list(members[a:b]) for a, b in pairwise(borders)]


class SideBySide(Generic[T]):
    """Jobs of environments, one thread for each; a context manager, which at its end waits for those under way.

    Args:
        groups: of environments, by their numbers; none is in two.
    """

    def __init__(self, groups: Sequence[Sequence[int]]):
        self._groups = [list(group) for group in groups]
        self._pool = ThreadPoolExecutor(max(1, sum(map(len, self._groups))), "environment")
        self._jobs: dict[int, Future[T]] = {}

    def __enter__(self) -> SideBySide[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, member: int, job: Callable[[], T]) -> None:
        """Let an environment do something; it must be back from what it did before."""
        self._jobs[member] = self._pool.submit(job)

    def back(self) -> dict[int, T]:
        """Wait until all that was started in some group is done: its results by environment, in the group's order.
        Empty when nothing was started. An exception of a job is raised here."""
        while self._jobs:
            for place, group in enumerate(self._groups):
                members = [member for member in group if member in self._jobs]
                if members and all(self._jobs[member].done() for member in members):
                    self._groups.append(self._groups.pop(place))  # the others have the next turn
                    return {member: self._jobs.pop(member).result() for member in members}
            wait([job for job in self._jobs.values() if not job.done()], return_when=FIRST_COMPLETED)
        return {}
