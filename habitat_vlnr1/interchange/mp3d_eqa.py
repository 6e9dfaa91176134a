"""MP3D-EQA's files (`MP3DEQA-v1` of Habitat), as far as questions about exported walks are concerned.

An episode asks one question. Those about the generated houses name in `info` the walk that has shown the answer, what
else is right, and OpenEQA's category; MP3D's own have none of these and are walked by `vlnr1_mp3d_eqa`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.questions import Checked, Question, with_frames
from habitat_vlnr1.records import VLNEgo


def read_eqa_file(file: Path) -> dict[str, Any]:
    """What `<split>.json.gz` holds: episodes and vocabularies.

    Raises:
        RecordError: it is not there, cut, or something else.
    """
    try:
        content = json.loads(gzip.decompress(file.read_bytes()))
        if not isinstance(content["episodes"], list) or not content["answer_vocab"]["word_list"]:
            raise KeyError("episodes")
    except FileNotFoundError:
        raise RecordError(f"{file}: not there; check vlnr1.task.questions") from None
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{file}: not a data set of MP3D-EQA ({error}); fetch or make it again") from None
    return content


def questions_of(file: Path, ego: VLNEgo) -> tuple[list[Question], list[str]]:
    """The questions of a file about the walks of an exported folder, and a line for each that cannot be asked."""
    checked = Checked()
    for number, episode in enumerate(read_eqa_file(file)["episodes"], start=1):
        checked.take(f"{file}, episode {number}", _row(episode))
    questions, without = with_frames(checked.questions, {e.episode_id: len(e.actions) for e in ego.episodes})
    return questions, [*checked.left_out, *(f"{file}, {line}" for line in without)]


def _row(episode: Any) -> Any:
    """An episode as a line of `questions.jsonl`; what is missing is not in it."""
    if not isinstance(episode, dict):
        return episode
    info, question = episode.get("info"), episode.get("question")
    info = info if isinstance(info, dict) else {}
    question = question if isinstance(question, dict) else {}
    parts = {
        "question_id": episode.get("episode_id"),
        "episode_id": info.get("walk"),
        "question": question.get("question_text"),
        "answer": question.get("answer_text"),
        "category": info.get("category"),
        "extra_answers": info.get("extra_answers"),
    }
    return {key: value for key, value in parts.items() if value is not None}
