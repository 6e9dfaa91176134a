"""A picture of questions: what was shown, what was asked, what is right and what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from habitat_vlnr1.evaluation.pictures import GREEN, GREY, INK, RED, Page, write_beside
from habitat_vlnr1.lvlm.frames import Frame, read_frame
from habitat_vlnr1.qa_metrics import normalised_match
from habitat_vlnr1.questions import Question

WIDTH, EDGE, CELL, GAP, COLUMNS = 1600, 28, 112, 8, 13
LINE = 26


def write_sheet(
    file: Path, questions: Sequence[Question], frames: Mapping[str, Sequence[Frame]], answers: Mapping[str, Mapping]
) -> Path:
    """Draw questions with their frames, one below the other, and return the picture's path.

    Args:
        frames: that were shown, by question id, the current one last.
        answers: by row, then by question id; none: what is right stands alone.
    """
    strips = [_strip(question, frames[question.question_id], answers) for question in questions]
    page = Page(WIDTH, sum(strip.height for strip in strips) + 16)
    top = 8
    for strip in strips:
        page.image.paste(strip, (0, top))
        top += strip.height
    half = file.with_name(f".half.{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    page.image.save(half)
    half.replace(file)
    write_beside(file, [question.question for question in questions])
    return file


def _strip(question: Question, frames: Sequence[Frame], answers: Mapping[str, Mapping]) -> Image.Image:
    pictures = [Image.fromarray(read_frame(frame)) for frame in frames]
    high = round(CELL * pictures[0].height / pictures[0].width)
    rows = -(-len(pictures) // COLUMNS)
    given = [(row, own[question.question_id]) for row, own in answers.items() if question.question_id in own]
    page = Page(WIDTH, 20 + rows * (high + GAP) + LINE * (2 + -(-len(given) // 4)) + 12)
    for number, picture in enumerate(pictures):
        x, y = EDGE + number % COLUMNS * (CELL + GAP), 8 + number // COLUMNS * (high + GAP)
        page.picture(picture, (x, y, x + CELL, y + high))
    top = 12 + rows * (high + GAP)
    page.text((EDGE, top), f"{question.category} · {question.history}", 16, fill=GREY)
    page.text((EDGE, top + LINE - 4), question.question, 20, fill=INK)
    right = " / ".join(question.answers)
    page.text((EDGE + 700, top + LINE - 4), f"right: {right}", 20, fill=INK)
    for number, (row, answer) in enumerate(given):
        colour = GREEN if normalised_match(answer, question.answers) else RED
        place = (EDGE + number % 4 * 380, top + LINE * (2 + number // 4) - 4)
        page.text(place, f"{row}: {answer or '(nothing)'}", 18, fill=colour)
    return page.image
