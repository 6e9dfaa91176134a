"""MP3D-EQA through Habitat's own task: walk the given path, then answer; Habitat measures `answer_accuracy`.

The agent stands where the episode's shortest path says, point after point, and sees what is to be seen there. The
model's answer in words becomes one of the data set's answers, and that number is the argument of Habitat's action
`answer`. Answers are kept as they are given, and a run that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from habitat_baselines.common.base_trainer import BaseTrainer
from omegaconf import DictConfig
from tqdm import tqdm

from habitat_vlnr1.config import question_memories
from habitat_vlnr1.errors import RecordError, ResultsError
from habitat_vlnr1.files import differences, drop_half_line, parse_json, read_json
from habitat_vlnr1.qa_metrics import normalised_match, token_f1
from habitat_vlnr1.results import write_json
from habitat_vlnr1.settings import check_settings
from habitat_vlnr1.sim.env_factory import make_scenes
from habitat_vlnr1.trainers.base import LEFT_OUT_STATUS, on_own_gpu, register_trainer, use_cores

NO_ANSWER = 0
"""Number of an answer that is none of the data set's: Habitat's vocabularies begin with an unknown word."""


@dataclass
class Answers:
    """A row's results: Habitat's `answer_accuracy` by question type, and where they are written."""

    file: Path
    marks: dict[str, dict[str, float]] = field(default_factory=dict)  # question type → episode id → accuracy

    @classmethod
    def open(cls, file: Path) -> Answers:
        """Those that are there already."""
        file.parent.mkdir(parents=True, exist_ok=True)
        drop_half_line(file)
        answers = cls(file)
        for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else [], start=1):
            row = parse_json(line, f"{file}, line {number}", "delete the line", ResultsError)
            answers.marks.setdefault(row["question_type"], {})[row["episode_id"]] = row["answer_accuracy"]
        return answers

    def add(self, row: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self.marks.setdefault(row["question_type"], {})[row["episode_id"]] = row["answer_accuracy"]

    def has(self, episode_id: str) -> bool:
        return any(episode_id in own for own in self.marks.values())


@register_trainer("vlnr1_mp3d_eqa")
class MP3DEQATrainer(BaseTrainer):
    """Evaluates a checkpoint in the rows of `vlnr1.eqa.rows`; there is nothing to train."""

    def __init__(self, config: DictConfig):
        self.config = config

    def train(self) -> None:
        self.eval()

    def eval(self) -> None:
        from habitat_vlnr1.trainers.eqa import make_text_decoder

        check_settings(self.config)
        self.config = config = on_own_gpu(self.config)
        memories = question_memories(config)
        unknown = [row for row in config.vlnr1.eqa.rows if row not in ("blind", *memories)]
        if unknown:
            there = ", ".join(["blind", *memories])
            raise RecordError(f"vlnr1.eqa.rows: MP3D-EQA has no row {unknown[0]!r}; there are {there}")
        use_cores(config.vlnr1.model.cpu_threads)
        make_scenes(config)
        split = config.habitat.dataset.split
        decoder, identity = make_text_decoder(config)
        named = {name: repr(memory) for name, memory in memories.items()}
        identity |= {"data": self._digest(split), "memories": named}
        folder = Path(config.vlnr1.results_dir) / config.vlnr1.task.name
        _claim(folder / split, json.loads(json.dumps(identity)))
        rows = {row: Answers.open(folder / split / f"{row}.jsonl") for row in config.vlnr1.eqa.rows}
        longest = max(memories.values(), key=lambda memory: memory.budget)
        left_out: dict[str, str] = {}
        for row, answers in rows.items():
            for walk in walks(config, answers):
                if walk.problem:
                    left_out[walk.episode_id] = walk.problem
                    continue
                shown = [walk.frames[i] for i in (*memories.get(row, longest).select(len(walk.frames) - 1), -1)]
                if row == "blind":
                    shown = [np.zeros_like(frame) for frame in shown]
                answers.add(walk.answered(*decoder.answer([walk.question], shown)))
        print(table(rows))
        (folder / split / "table.md").write_text(table(rows) + "\n", encoding="utf-8")
        for name, why in left_out.items():
            print(f"left out: episode {name}: {why}")
        if left_out:
            raise SystemExit(LEFT_OUT_STATUS)

    def _digest(self, split: str) -> str:
        file = Path(self.config.habitat.dataset.data_path.format(split=split))
        if not file.is_file():
            raise RecordError(f"{file}: not there; fetch MP3D-EQA, or take vlnr1/task=embedded_eqa")
        return sha256(file.read_bytes()).hexdigest()[:16]


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    file = folder / "run.json"
    if file.exists():
        changed = differences(read_json(file, f"delete {folder}", ResultsError), identity)
        if changed:
            raise ResultsError(f"{folder} has the answers of another run ({'; '.join(changed)}): delete it")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, identity)


class Walk:
    """One episode of Habitat's EQA task on its way to the answer.

    Args:
        env: Habitat's, at the beginning of the episode.
        answers: of the data set.

    Attributes:
        frames: uint8 [H, W, 3], one per point of the given path.
        problem: why it cannot be walked; empty when it can.
    """

    def __init__(self, env: Any, answers: Sequence[str]):
        self.env, self.answers = env, answers
        episode = env.current_episode
        self.episode_id = str(episode.episode_id)
        self.question = episode.question.question_text
        self.type = episode.question.question_type or "question"
        self.frames: list[np.ndarray] = []
        points = episode.shortest_paths[0] if episode.shortest_paths else []
        self.problem = "" if points else "it has no path to walk"
        for point in points:
            seen = env.sim.get_observations_at(point.position, point.rotation, keep_agent_at_new_pose=True)
            if seen is None:
                self.problem = f"nobody can stand at {point.position}"
                break
            self.frames.append(np.asarray(seen["rgb"])[..., :3].copy())

    def answered(self, text: str) -> dict[str, Any]:
        """Give the answer to Habitat, which ends the episode, and say what it made of it."""
        number = answer_number(text, self.answers)
        self.env.step({"action": "answer", "action_args": {"answer_id": number}})
        accuracy = float(self.env.get_metrics()["answer_accuracy"])
        return {
            "episode_id": self.episode_id,
            "question_type": self.type,
            "question": self.question,
            "answer": text,
            "answer_id": number,
            "answer_accuracy": accuracy,
        }


def answer_number(text: str, answers: Sequence[str]) -> int:
    """Which of a data set's answers (of which the first is the unknown word) is meant: the one of the same words, else
    the one with the best F1; `NO_ANSWER` where none has a word in common."""
    for number, answer in enumerate(answers):
        if normalised_match(text, [answer]):
            return number
    return int(np.argmax([token_f1(text, [answer]) for answer in answers]))  # of zeros the first: NO_ANSWER


def walks(config: DictConfig, answers: Answers) -> Iterator[Walk]:
    """The episodes that have no answer yet, each walked to the end of its path."""
    import habitat

    dataset: Any = habitat.make_dataset(config.habitat.dataset.type, config=config.habitat.dataset)
    dataset.episodes = [episode for episode in dataset.episodes if not answers.has(str(episode.episode_id))]
    if not dataset.episodes:
        return
    with habitat.Env(config=config, dataset=dataset) as env:
        for _ in tqdm(range(len(dataset.episodes)), desc="EQA-v0", disable=len(dataset.episodes) < 20):
            env.reset()
            yield Walk(env, dataset.answer_vocab.word_list)


def table(rows: dict[str, Answers]) -> str:
    """Markdown: `answer_accuracy` of each row, over all episodes and by question type."""
    types = sorted({kind for own in rows.values() for kind in own.marks})
    lines = [f"| row | episodes | answer_accuracy | {' | '.join(types)} |", f"|---|{'---:|' * (len(types) + 2)}"]
    for row, own in rows.items():
        every = [mark for marks in own.marks.values() for mark in marks.values()]
        cells = [_mean(list(own.marks.get(kind, {}).values())) for kind in types]
        lines.append(f"| {row} | {len(every)} | {_mean(every)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(marks: Sequence[float]) -> str:
    return f"{sum(marks) / len(marks):.3f}" if marks else "–"
