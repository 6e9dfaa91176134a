"""What the model is asked: instruction, history frames, current frame, options.

One template serves export, training, evaluation and reinforcement, so that what is trained is what is asked. The
instruction stands before the frames, so that the text before the first frame that changes can be reused. Where nothing
stands behind them either (`frames_last`, `compact`), so can a history that only grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lookup import find

IMAGE: dict[str, str] = {"type": "image"}
Message = dict[str, Any]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _vln_ego(instruction: str, num_history: int, num_actions: int, space: ActionSpace) -> list[Message]:
    """The prompt of VLN-Ego as its authors released it, with the angles that the simulator really turns."""
    head = (
        "Imagine you are a robot designed for navigation tasks. "
        f"Your instruction is '{instruction}'.\nYou are provided with:\n- Historical observations: "
    )
    options = "\n".join(f"{option}." for option in space.options())
    example = space.format([1, 2, 3, 0])
    tail = (
        f"\n\nYour task is to select the next {num_actions} actions based on this information.\n"
        f"Options:\n{options}\n\nAnswer the formatting requirements:\n"
        f"1. must contain {num_actions} action predictions\n2. use full option text\n"
        f"3. be separated by commas\n4. example: {example}"
    )
    return [
        {
            "role": "user",
            "content": [_text(head), *[IMAGE] * num_history, _text("\n- Current observation: "), IMAGE, _text(tail)],
        }
    ]


def _frames_last(instruction: str, num_history: int, num_actions: int, space: ActionSpace) -> list[Message]:
    """VLN-Ego's words, and behind them all frames in order of time: a history that only grows is run but once."""
    example = space.format([1, 2, 3, 0])
    options = "\n".join(f"{option}." for option in space.options())
    head = (
        "Imagine you are a robot designed for navigation tasks. "
        f"Your instruction is '{instruction}'.\n"
        f"Your task is to select the next {num_actions} actions based on what you have observed.\n"
        f"Options:\n{options}\n\nAnswer the formatting requirements:\n"
        f"1. must contain {num_actions} action predictions\n2. use full option text\n"
        f"3. be separated by commas\n4. example: {example}\n\n"
        "You are provided with your observations in order of time; the last one is the current one: "
    )
    return [{"role": "user", "content": [_text(head), *[IMAGE] * (num_history + 1)]}]


def _compact(instruction: str, num_history: int, num_actions: int, space: ActionSpace) -> list[Message]:
    """Instruction and frames, the current one last: for small models, which learn the options from the data."""
    return [{"role": "user", "content": [_text(instruction), *[IMAGE] * (num_history + 1)]}]


def _question(question: str, num_history: int) -> list[Message]:
    """A question about a walk. It stands behind the frames, so that several about one history share them."""
    head = "These are frames of a robot's walk through a building, in order; the last one is what it sees now.\n"
    tail = f"\nAnswer in a word or a short phrase: {question}"
    return [{"role": "user", "content": [_text(head), *[IMAGE] * (num_history + 1), _text(tail)]}]


def _compact_question(question: str, num_history: int) -> list[Message]:
    """Frames and question, for small models."""
    return [{"role": "user", "content": [*[IMAGE] * (num_history + 1), _text(question)]}]


@dataclass(frozen=True)
class PromptTemplate:
    """A named way to ask.

    `messages(instruction, num_history, num_actions, space)` gives chat messages for `apply_chat_template`: the
    content is a list of text and image parts, history images in order of time, the current image last. Likewise
    `question(question, num_history)` for a question about what was seen.
    """

    name: str
    messages: Callable[[str, int, int, ActionSpace], list[Message]]
    question: Callable[[str, int], list[Message]] = _question


TEMPLATES = {
    "vln_ego": PromptTemplate("vln_ego", _vln_ego),
    "frames_last": PromptTemplate("frames_last", _frames_last),
    "compact": PromptTemplate("compact", _compact, _compact_question),
}


def get_template(name: str) -> PromptTemplate:
    """A template by its name here, or by the import path of a function `messages` (`package.module.function`).

    Raises:
        ValueError: there is no such template, or the import path names no function.
    """
    found = find("prompt template", name, TEMPLATES)
    if isinstance(found, PromptTemplate):
        return found
    if not callable(found):
        raise VLNR1Error(f"prompt template {name!r} is no function (instruction, num_history, num_actions, space)")
    return PromptTemplate(name, found)
