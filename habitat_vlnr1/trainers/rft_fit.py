"""The optimisation of stage 2 (eqs. 3–5 and 9 of VLN-R1): rows, rewards and the run around TRL's GRPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from omegaconf import DictConfig
from transformers import ProcessorMixin

from habitat_vlnr1.config import action_space, prompt_encoder, template_of, trained_card
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.files import full_disk_is_said
from habitat_vlnr1.lvlm.checkpoint import ModelCard
from habitat_vlnr1.lvlm.drafts import choose_drafts
from habitat_vlnr1.lvlm.frames import scaled
from habitat_vlnr1.lvlm.plain_text import PlainText
from habitat_vlnr1.optimisation import batch_text, lora, reward_functions, rft_arguments
from habitat_vlnr1.questions import QuestionRecord
from habitat_vlnr1.records import RecordError, Records, keep_some
from habitat_vlnr1.results import LISTED
from habitat_vlnr1.sim.headway import Headway
from habitat_vlnr1.trainers.fitting import (
    CardCallback,
    last_checkpoint,
    load_for_training,
    nothing_left,
    optimise,
    training_run,
    whole_model,
)
from habitat_vlnr1.trainers.grpo import GroupTrainer, RecordTrainer
from habitat_vlnr1.trainers.online import OnlineTrainer, Walkers, first_distance


@dataclass(frozen=True)
class Recorded:
    """Records to train on.

    Args:
        records: all of them.
        train: numbers of those that are trained on.
        held_out: numbers of those that the reward is measured on.
        headway: what walks answers ahead, where a reward asks for it.
    """

    records: Records
    train: list[int]
    held_out: list[int]
    headway: Headway | None = None

    def __str__(self) -> str:
        return f"{len(self.train)} records"


@dataclass(frozen=True)
class Asked:
    """Questions to train on, and those that the reward is measured on."""

    train: list[QuestionRecord]
    held_out: list[QuestionRecord]
    folders: list[Path]

    def __str__(self) -> str:
        return f"{len(self.train)} questions"


@dataclass(frozen=True)
class Online:
    """Episodes to walk: their rows, and who walks."""

    rows: Dataset
    walkers: Walkers

    def __str__(self) -> str:
        return f"{len(self.rows)} episodes"


def draw_records(
    records: Records, wanted: Sequence[tuple[str, int]], keep_straight: float, seed: int
) -> list[list[int]]:
    """Numbers of records drawn at random without repetition: of each source as many as (name, count) says (-1: all).

    Raises:
        RecordError: a source has fewer.
    """
    chance = np.random.default_rng(seed)
    kept = np.concatenate(records.rows(1, keep_some(records.num_actions, keep_straight, seed)))
    drawn = []
    for (source, count), span in zip(wanted, records.spans(), strict=True):
        own = kept[(kept >= span.start) & (kept < span.stop)]
        if count > len(own):
            raise RecordError(
                f"{count} records of {source} are asked for, but there are {len(own)}: lower vlnr1.data.rft_records "
                "or vlnr1.rft.held_out.records, or export more"
            )
        drawn.append(chance.choice(own, len(own) if count < 0 else count, replace=False).tolist())
    return drawn


def draw_questions(
    parts: Sequence[tuple[str, Sequence[Sequence[QuestionRecord]], int]], seed: int
) -> list[list[QuestionRecord]]:
    """Of each (source, its questions under each memory, count) as many drawn at random without repetition (-1: all);
    the memories take turns.

    Raises:
        RecordError: a source has fewer.
    """
    chance = np.random.default_rng(seed)
    drawn = []
    for source, views, count in parts:
        there = len(views[0])
        if count > there:
            raise RecordError(
                f"{count} questions of {source} are asked for, but there are {there}: lower "
                "vlnr1.data.rft_questions or vlnr1.rft.held_out.records"
            )
        numbers = chance.choice(there, there if count < 0 else count, replace=False)
        drawn.append([views[k % len(views)][int(number)] for k, number in enumerate(numbers)])
    return drawn


def columns_for_rewards(records: Records, numbers: list[int], headway: Headway | None) -> dict[str, list[Any]]:
    """What rewards are given of each record: its answer; and for those that walk answers ahead its episode and the
    actions before it."""
    chosen = [records[number] for number in numbers]
    actions = {"actions": [list(map(int, record.answer)) for record in chosen]}
    if headway is None:
        return actions
    splits = {id(episode): ego.meta.get("split") or "" for ego in records.sources for episode in ego.episodes}
    return {
        **actions,
        "split": [splits[id(record.episode)] for record in chosen],
        "episode_id": [record.episode.episode_id for record in chosen],
        "taken": [list(map(int, record.episode.actions[: record.step])) for record in chosen],
    }


def rows_for_groups(records: Records, numbers: list[int], headway: Headway | None = None) -> Dataset:
    """Rows for `GroupTrainer`."""
    prompts = [records.locate(number)[0].instruction for number in numbers]
    return Dataset.from_dict({"prompt": prompts, "record": numbers, **columns_for_rewards(records, numbers, headway)})


def rows_for_walks(episodes: Sequence[Any], count: int, seed: int) -> Dataset:
    """Rows for `OnlineTrainer`: `count` episodes drawn at random without repetition (-1: all).

    Raises:
        ValueError: there are fewer that have a distance for the reward `progress` to divide by.
    """
    without = [episode.episode_id for episode in episodes if first_distance(episode) is None]
    if without:
        ids = ", ".join(without[:LISTED]) + (" …" if len(without) > LISTED else "")
        print(f"{len(without)} episodes are left out: they have no positive info.geodesic_distance: {ids}")
        episodes = [episode for episode in episodes if first_distance(episode) is not None]
    if not episodes:
        raise VLNR1Error("no episode has info.geodesic_distance: choose another task or split")
    if count > len(episodes):
        raise VLNR1Error(f"vlnr1.rft.online.episodes is {count}, but the split has {len(episodes)} episodes")
    order = np.random.default_rng(seed).permutation(len(episodes))
    drawn = [episodes[i] for i in order[: len(episodes) if count < 0 else count]]
    return Dataset.from_dict(
        {
            "prompt": [episode.instruction.instruction_text for episode in drawn],
            "scene_id": [episode.scene_id for episode in drawn],
            "episode_id": [str(episode.episode_id) for episode in drawn],
            "start_distance": [first_distance(episode) for episode in drawn],
        }
    )


def rows_for_trl(
    config: DictConfig, records: Records, numbers: list[int], processor: ProcessorMixin, headway: Headway | None = None
) -> Dataset:
    """Rows of navigation records for plain TRL; see `chat_rows`."""
    template, space = template_of(config), action_space(config)
    chosen = [records[number] for number in numbers]
    prompts = [
        template.messages(record.instruction, len(record.history), records.num_actions, space) for record in chosen
    ]
    asked = [(f"episode {record.episode.episode_id}", record.instruction) for record in chosen]
    columns = columns_for_rewards(records, numbers, headway)
    return chat_rows(prompts, [record.frames for record in chosen], asked, columns, processor)


def rows_for_questions(config: DictConfig, chosen: Sequence[QuestionRecord], processor: ProcessorMixin) -> Dataset:
    """Rows of questions for plain TRL; see `chat_rows`."""
    template = template_of(config)
    prompts = [template.question(record.instruction, len(record.frames) - 1) for record in chosen]
    asked = [(f"question {record.question.question_id}", record.instruction) for record in chosen]
    columns = {"answers": [list(record.question.answers) for record in chosen]}
    return chat_rows(prompts, [record.frames for record in chosen], asked, columns, processor)


def chat_rows(
    prompts: Sequence[Any],
    frames: Sequence[Sequence[Path]],
    asked: Sequence[tuple[str, str]],
    columns: dict[str, list[Any]],
    processor: ProcessorMixin,
) -> Dataset:
    """Rows for plain TRL: chat messages with their images, read and scaled when a row is.

    A vLLM server puts images through a processor of its own, with the limits of the model as released: it is given
    frames that are within those of `processor`.

    Args:
        prompts: chat messages.
        frames: files of each prompt's images.
        asked: what each prompt is of, and its words.
        columns: what the rewards get.

    Raises:
        RecordError: the words have a special token of the tokenizer in them, which TRL would take for one.
    """
    plain_text = PlainText(processor.tokenizer)
    for place, words in asked:
        if plain_text.guard(words)[1]:
            raise RecordError(
                f"{place}: its words have a chat marker in them, which TRL's own rollout takes for one: set "
                "vlnr1.rft.rollout=grammar where actions are trained, or delete its line"
            )
    images = [[str(frame) for frame in files] for files in frames]
    rows = Dataset.from_dict({"prompt": list(prompts), "images": images, **columns})

    def read(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [[scaled(frame, processor.image_processor) for frame in frames] for frames in batch["images"]]
        return {**batch, "images": images}

    return rows.with_transform(read)


def make_trainer(
    config: DictConfig, start: str, last: str | None, task: Recorded | Asked | Online, card: ModelCard | None = None
) -> RecordTrainer:
    """The configured GRPO trainer.

    Args:
        start: checkpoint that the run starts from, and the reference model of the KL term.
        last: the run's newest checkpoint, or None.
        task: what is trained on.
        card: for its checkpoints; None: one that says nothing about the run.
    """
    # TRL loads the reference from here, and knows no adapters.
    has_reference = config.vlnr1.model.lora is None and config.vlnr1.rft.beta > 0
    reference = whole_model(config, start) if has_reference else None
    model, processor, arguments = load_for_training(config, start, last, rft_arguments)
    check_enough(len(task.rows if isinstance(task, Online) else task.train), arguments)
    if reference is not None:
        model.config._name_or_path = reference
    encoder = prompt_encoder(config, processor)
    # TRL pads prompts on the left, and takes their image places from the processor: it must pad on the same side.
    processor.tokenizer.padding_side = "left"
    card = card or trained_card(config, "rft", start)
    shared: dict[str, Any] = {
        "model": model,
        "reward_funcs": reward_functions(config),
        "args": arguments,
        "processing_class": processor,
        "peft_config": lora(config),
        "callbacks": [CardCallback(card)],
    }
    count, n = config.vlnr1.decoding.drafts, config.vlnr1.prompt.num_actions
    drafts = choose_drafts(card.frequent_answers, count, n, arguments.device.type)
    ours = {"encoder": encoder, "train_forced": config.vlnr1.rft.train_forced, "drafts": drafts, **shared}
    if isinstance(task, Online):
        return OnlineTrainer(
            train_dataset=task.rows, walkers=task.walkers, turns=config.vlnr1.rft.online.turns, **ours
        )
    if isinstance(task, Asked):
        rows = [rows_for_questions(config, chosen, processor) for chosen in (task.train, task.held_out)]
        return RecordTrainer(train_dataset=rows[0], eval_dataset=rows[1], **shared)
    parts = task.train, task.held_out
    if config.vlnr1.rft.rollout == "trl":
        rows = [rows_for_trl(config, task.records, part, processor, task.headway) for part in parts]
        return RecordTrainer(train_dataset=rows[0], eval_dataset=rows[1], headway=task.headway, **shared)
    rows = [rows_for_groups(task.records, part, task.headway) for part in parts]
    ours |= {"records": task.records, "headway": task.headway}
    return GroupTrainer(train_dataset=rows[0], eval_dataset=rows[1], **ours)


def check_enough(rows: int, arguments: Any) -> None:
    """TRL leaves out what does not fill an update, and with less than one it would train nothing, without a word.

    Args:
        rows: records, questions or episodes that are trained on.
        arguments: GRPOConfig.

    Raises:
        RecordError: an update draws more.
    """
    prompts = arguments.generation_batch_size // arguments.num_generations
    if rows < prompts:
        raise RecordError(
            f"{rows} rows to train on, but an update draws {prompts} prompts (vlnr1.rft.per_device_train_batch_size / "
            "num_generations, of all processes and accumulation steps): lower these, or raise vlnr1.data.rft_records"
        )


def fit(config: DictConfig, start: str, task: Recorded | Asked | Online) -> None:
    """Train from `start`, or go on from the newest checkpoint of the run; draws the curves at the end."""
    folder = config.habitat_baselines.checkpoint_folder
    folders: list[Path] = []
    if isinstance(task, Recorded):
        folders = [ego.root for ego in task.records.sources]
    elif isinstance(task, Asked):
        folders = task.folders
    card = trained_card(config, "rft", start, run=training_run(config, "rft", start, folders))
    last, finished = last_checkpoint(folder, config.vlnr1.rft, card)
    if finished:
        print(f"RFT is finished: {last}")
        return
    going_on = f", going on from {last}" if last else ""
    print(f"RFT on {task} from {start}{going_on}; {batch_text(config, 'rft')}")
    with nothing_left(), full_disk_is_said(folder):
        history = optimise(make_trainer(config, start, last, task, card), last)
    if PartialState().is_main_process:
        picture = Path(folder).parent / "curves.png"
        draw_curves(history, picture)
        print(f"RFT reward: {picture}")


def draw_curves(history: list[dict[str, float]], picture: Path) -> None:
    """Reward, KL, entropy and what they come to over the steps of a run, from the Trainer's log.

    What they come to is the accuracy per future position on held-out records, or the success of walks. What is not
    logged has no panel: KL with beta 0, accuracy of answers to questions.
    """
    from matplotlib.figure import Figure

    panels = curves_of(history)
    figure = Figure(figsize=(4 * max(len(panels), 1), 3.6), layout="constrained")
    for place, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place, title=title, xlabel="step")
        for label, points in lines.items():
            few = title == "held-out accuracy" or label.startswith("held out")
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if few else None)
        axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def curves_of(history: list[dict[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What a log has to draw: title of a panel → label of a line → its (step, value)s."""
    lines: dict[str, list[tuple[float, float]]] = {}  # key of the log → its points
    for row in history:
        for key, value in row.items():
            if value is not None:
                lines.setdefault(key, []).append((row["step"], value))
    n = sum(key.startswith("eval_answers/accuracy_") for key in lines)
    wanted: dict[str, dict[str, str]] = {  # title → label → key of the log
        "reward": {
            "training": "reward",
            "held out": "eval_reward",
            "held out, likeliest answer": "eval_greedy_reward",
        },
        "KL to the reference": {"KL": "kl"},
        "entropy": {"of a token": "entropy"},
        "walks in training": {"success": "walks/success", "SPL": "walks/spl"},
        "held-out accuracy": {f"action {k}": f"eval_answers/accuracy_{k}" for k in range(1, n + 1)},
    }
    panels = {
        title: {label: lines[key] for label, key in keys.items() if key in lines} for title, keys in wanted.items()
    }
    return {title: found for title, found in panels.items() if found}
