"""Embodied question answering: training on questions beside navigation, and the table of answers.

`vlnr1_eqa` trains as `vlnr1_sft` does, with questions about the exported walks mixed in (`vlnr1.data.questions`), and
then answers the questions of `habitat_baselines.eval.split` in every row of `vlnr1.eqa.rows`; with
`vlnr1.eqa.navigate=true` the same checkpoint walks, too. With `vlnr1.eqa.open_eqa.file` it answers OpenEQA's questions
instead. Whatever is interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from habitat_vlnr1.config import export_folder, memory_of, question_memories
from habitat_vlnr1.errors import MissingFileError, VLNR1Error
from habitat_vlnr1.memory import Memory
from habitat_vlnr1.questions import Question, QuestionRecords, read_questions
from habitat_vlnr1.records import VLNEgo
from habitat_vlnr1.trainers.base import LEFT_OUT_STATUS, on_own_gpu, register_trainer, use_cores
from habitat_vlnr1.trainers.sft import SPLIT, SFTTrainer

if TYPE_CHECKING:
    from habitat_vlnr1.lvlm.frames import Frame

Shown = Callable[[Question, Memory], Sequence["Frame"]]


@register_trainer("vlnr1_eqa")
class EQATrainer(SFTTrainer):
    """`vlnr1_sft` with questions, and their evaluation."""

    def __init__(self, config: DictConfig | None = None):
        from habitat_vlnr1.evaluation.question_run import check_rows

        super().__init__(config)
        check_rows(self.config.vlnr1.eqa.rows, question_memories(self.config))

    def train(self) -> None:
        from habitat_vlnr1.lvlm import checkpoint

        start = self.config.vlnr1.model.path
        if start is not None and not checkpoint.is_checkpoint(checkpoint.resolve(start)):
            raise MissingFileError(
                f"no checkpoint in {start}: run `python -m habitat_baselines.run --config-name=vlnr1_sft` first, name "
                "one with vlnr1.model.path=<folder or hub id>, or take vlnr1.model.path=null for a new model"
            )
        super().train()

    def eval(self) -> None:
        self.config = on_own_gpu(self.config)
        use_cores(self.cpu_threads)
        left_out = answer_open_eqa(self.config) if self.config.vlnr1.eqa.open_eqa.file else self._answer_split()
        for line in left_out:
            print(f"left out: {line}")
        if self.config.vlnr1.eqa.navigate:
            super().eval()
        if left_out:
            raise SystemExit(LEFT_OUT_STATUS)

    def _answer_split(self) -> list[str]:
        """Answer the questions of the evaluation's split, after the export of what is missing."""
        from habitat_vlnr1.trainers.export import add_questions, export_if_missing

        config, split = self.config, self.config.habitat_baselines.eval.split
        export_if_missing(self, config, split)
        add_questions(config, split)
        ego = VLNEgo(export_folder(config, split))
        questions, left_out = read_questions(ego)
        records = QuestionRecords(ego, questions, memory_of(config))
        folder = Path(config.vlnr1.results_dir) / "questions"
        return left_out + answer_rows(config, questions, records.shown, folder, split)


def answer_rows(config: DictConfig, questions: list[Question], shown: Shown, folder: Path, split: str) -> list[str]:
    """Answer questions in every configured row; print the table, write it and a picture sheet.

    Returns: a line for each history that could not be shown.
    """
    from habitat_vlnr1.evaluation.question_run import ANSWERS, answer_all, summarise, table
    from habitat_vlnr1.evaluation.question_sheet import write_sheet
    from habitat_vlnr1.results import write_json

    make = RowMaker(config, shown)
    summaries, answers, left_out = [], {}, []
    for row in config.vlnr1.eqa.rows:
        own = folder / row / split
        answered = answer_all(row, make(row), questions, own)
        more = {"llm": judged(config, answered.questions, answered.answers, own)} if config.vlnr1.eqa.judge.url else {}
        summary = summarise(answered, more)
        write_json(own / ANSWERS, summary)
        summaries.append(summary)
        answers[row] = answered.answers
        left_out += answered.left_out
    if not any(summary["questions"] for summary in summaries):
        raise VLNR1Error(f"no question of {split} could be shown: {left_out[0] if left_out else 'there are none'}")
    text = table([summary for summary in summaries if summary["questions"]])
    print(text)
    (folder / f"table-{split}.md").write_text(text + "\n", encoding="utf-8")
    drawn = spread_over([q for q in questions if all(q.question_id in own for own in answers.values())], config)
    if drawn:
        memory = make.memories[make.longest]
        frames = {question.question_id: shown(question, memory) for question in drawn}
        print(f"questions, frames, answers: {write_sheet(folder / f'sheet-{split}.png', drawn, frames, answers)}")
    return list(dict.fromkeys(left_out))


def spread_over(questions: Sequence[Question], config: DictConfig) -> list[Question]:
    """As many questions as are drawn, spread over all."""
    count = min(config.vlnr1.eqa.pictures, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


class RowMaker:
    """Makes what answers in a row; the rows of a model share its decoder.

    Args:
        config: the run's.
        shown: the frames of a question under a memory.
    """

    def __init__(self, config: DictConfig, shown: Shown):
        self.config, self.shown = config, shown
        self.memories = question_memories(config)
        self.longest = max(self.memories, key=lambda name: self.memories[name].budget)
        self._decoder: Any = None

    def __call__(self, row: str) -> Any:
        from habitat_vlnr1.evaluation.question_run import BASELINES, Frequent, Looking

        if row in BASELINES:
            return Frequent(training_questions(self.config), BASELINES[row])
        memory = self.memories[self.longest if row == "blind" else row]
        if self._decoder is None:
            self._decoder, self._identity = make_text_decoder(self.config)
        return Looking(self._decoder.answer, self.shown, memory, self._identity, blind=row == "blind")


def training_questions(config: DictConfig) -> list[Question]:
    """Those of all sources that are trained on."""
    roots = (Path(config.vlnr1.data.root) / source / SPLIT for source in config.vlnr1.data.questions)
    return [question for root in roots for question in read_questions(VLNEgo(root))[0]]


def make_text_decoder(config: DictConfig) -> tuple[Any, dict[str, Any]]:
    """What asks the configured checkpoint (of the run, the newest) for text, and what its answers depend on."""
    import torch

    from habitat_vlnr1.config import model_card
    from habitat_vlnr1.lvlm import checkpoint
    from habitat_vlnr1.lvlm.free_text import load_text_decoder
    from habitat_vlnr1.weights import check_whole, folder_fingerprint

    folder = config.habitat_baselines.eval_ckpt_path_dir
    path = config.vlnr1.checkpoint or checkpoint.newest_checkpoint(folder)
    if path is None:
        raise MissingFileError(f"{folder}: no checkpoint; train one, or name one with vlnr1.checkpoint=<folder>")
    path = checkpoint.resolve(path)
    check_whole(checkpoint.existing(path))
    ours = config.vlnr1.model
    decoder = load_text_decoder(
        path,
        model_card(config),
        dtype=ours.dtype,
        device=torch.device("cuda", config.habitat_baselines.torch_gpu_id) if torch.cuda.is_available() else None,
        attn_implementation=ours.attn_implementation,
        max_new_tokens=config.vlnr1.eqa.max_new_tokens,
        feature_cache_mb=config.vlnr1.decoding.feature_cache_mb,
    )
    identity = {
        "checkpoint": folder_fingerprint(path) or path,
        "template": config.vlnr1.prompt.template,
        "max_pixels": ours.image_size**2,
        "max_new_tokens": config.vlnr1.eqa.max_new_tokens,
    }
    return decoder, identity


def judged(
    config: DictConfig, questions: Sequence[Question], answers: dict[str, str], folder: Path
) -> dict[str, float]:
    """LLM-Match of the configured endpoint, 0 to 1 by question id."""
    from habitat_vlnr1.evaluation.llm_match import Judge

    judge = config.vlnr1.eqa.judge
    return Judge(judge.url, judge.model, judge.key_variable).mark_all(questions, answers, folder)


def answer_open_eqa(config: DictConfig) -> list[str]:
    """Answer OpenEQA's questions whose frames are there, and write its predictions.

    Returns: a line for each question or history that could not be asked.
    """
    from habitat_vlnr1.evaluation.question_run import PREDICTIONS, read_predictions
    from habitat_vlnr1.interchange.open_eqa import read_open_eqa, write_predictions

    options = config.vlnr1.eqa.open_eqa
    data = read_open_eqa(options.file, options.frames)
    print(f"OpenEQA: {len(data.questions)} questions about {len(data.histories)} histories")
    if data.missing:
        without = ", ".join(data.missing)
        print(f"OpenEQA: {len(data.missing)} histories have no frames below {options.frames}: {without}")
    asked = [question for question in data.questions if question.history in data.frames]
    folder = Path(config.vlnr1.results_dir) / "open_eqa"
    left_out = answer_rows(config, asked, data.shown, folder, "v0")
    for row in config.vlnr1.eqa.rows:
        answers = read_predictions(folder / row / "v0" / PREDICTIONS)
        file = folder / row / "v0" / "open-eqa-predictions.json"
        write_predictions(file, data.questions, answers, partial=True)
        print(f"{row}: {len(answers)} of {len(data.questions)} predictions in {file}")
    return data.left_out + left_out
