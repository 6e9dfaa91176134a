"""Findings: one line each, with what to do where something is not right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

OK, WARNING, ERROR = LEVELS = ("OK", "WARNING", "ERROR")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Args:
        level: OK, WARNING (something will be slow, missing or made later) or ERROR (the configured run will fail).
        topic: what was looked at.
        text: what is there.
        remedy: what to do, a command or a config key; empty for OK.
    """

    level: str
    topic: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.level:7}  {self.topic}: {one_line(self.text)}"
        return f"{line}\n         → {one_line(self.remedy)}" if self.remedy else line


def ok(topic: str, text: str) -> Finding:
    return Finding(OK, topic, text)


def warning(topic: str, text: str, remedy: str) -> Finding:
    return Finding(WARNING, topic, text, remedy)


def error(topic: str, text: str, remedy: str) -> Finding:
    return Finding(ERROR, topic, text, remedy)


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def shown(names: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def guarded(topic: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; whatever it stumbles over is a finding too, so that the other checks still run."""
    try:
        yield from check()
    except Exception as problem:
        yield error(
            topic,
            f"this check stopped at {type(problem).__name__}: {problem}",
            "correct what the message names and run the doctor again; if it names nothing, please report it",
        )
