"""Data in and out: the authors' ShareGPT JSON, Parquet shards, cards, pictures and reports, submission files; and
adapters merged into whole checkpoints.

`vlnr1_convert` runs one conversion, named by `vlnr1.convert.to`. It writes into its output folder only, goes on where
it was interrupted, and refuses a folder that was made from something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from habitat import make_dataset
from habitat_baselines.common.base_trainer import BaseTrainer
from omegaconf import DictConfig
from tqdm import tqdm

from habitat_vlnr1.config import action_space, edited, plain, records_of
from habitat_vlnr1.episode_writer import EpisodeWriter, claim_folder
from habitat_vlnr1.errors import CheckpointError, VLNR1Error
from habitat_vlnr1.files import write_atomically
from habitat_vlnr1.interchange.card import name_of, write_card, write_sheet
from habitat_vlnr1.interchange.lerobot import write_lerobot
from habitat_vlnr1.interchange.parquet import ParquetEpisodes, columns, write_parquet
from habitat_vlnr1.interchange.sharegpt import read_sharegpt, write_sharegpt
from habitat_vlnr1.interchange.submission import write_submission
from habitat_vlnr1.interchange.trl_rows import write_trl
from habitat_vlnr1.lock import FolderLock
from habitat_vlnr1.prompt import PromptTemplate, get_template
from habitat_vlnr1.records import Episode, RecordError, Records, VLNEgo, summarize
from habitat_vlnr1.report.build import NAME, write_data_report, write_results_report
from habitat_vlnr1.report.curves import FILES
from habitat_vlnr1.settings import check_settings
from habitat_vlnr1.trainers.base import register_trainer
from habitat_vlnr1.weights import ADAPTER_FILE, CARD_FILE, is_adapter, origin

SOURCE = "source.json"  # in an output folder: what it was made from


@register_trainer("vlnr1_convert")
class ConvertTrainer(BaseTrainer):
    """Runs the conversion `vlnr1.convert.to` of `vlnr1.convert.input` into `vlnr1.convert.output`."""

    def __init__(self, config: DictConfig):
        self.config = config

    def train(self) -> None:
        check_settings(self.config)
        to = self.config.vlnr1.convert.to
        if to not in CONVERSIONS:
            raise VLNR1Error(f"unknown vlnr1.convert.to {to!r}; choose one of {', '.join(CONVERSIONS)}")
        CONVERSIONS[to](self.config)


def folders(config: DictConfig, default: str) -> tuple[Path, Path]:
    """Input and output of the conversion; `default` has `{input}` in it."""
    options = config.vlnr1.convert
    return Path(options.input), Path(options.output or default.format(input=options.input.rstrip("/")))


def picture(config: DictConfig, ego: VLNEgo, records: Records, output: Path) -> Path:
    """Draw a few records, in the words that the data were recorded with."""
    return write_sheet(records, ego.space or action_space(config), output, config.vlnr1.convert.view_records)


def describe(config: DictConfig, ego: VLNEgo, output: Path, form: str, **made_with: Any) -> None:
    """Card and picture of a data set; the last thing that a conversion does."""
    records = records_of(config, [ego])
    picture(config, ego, records, output)
    write_card(ego, name_of(ego.root), output, form, made_with)
    print(f"{form}: {output} ({len(ego.episodes)} episodes, {len(records)} records; README.md and view.png beside)")


def to_card(config: DictConfig) -> None:
    """Card and picture of a VLN-Ego folder, into it unless another output is named."""
    source, output = folders(config, "{input}")
    ego = VLNEgo(source)
    output.mkdir(parents=True, exist_ok=True)
    describe(config, ego, output, "vln_ego")


def to_view(config: DictConfig) -> None:
    """What is to be looked at of a folder: `report.html` of a VLN-Ego folder, with the card's picture, of results or
    of a run."""
    source, output = folders(config, "{input}")
    options = config.vlnr1.convert
    if not (source / "meta.json").is_file() and (any(source.rglob("summary.json")) or any(source.rglob(FILES))):
        print(write_results_report(output / NAME, [source], options.report_mb, [source]))
        return
    ego = VLNEgo(source)
    records = records_of(config, [ego])
    output.mkdir(parents=True, exist_ok=True)
    print(picture(config, ego, records, output))
    print(write_data_report(output / NAME, name_of(source), records, action_space(config), options.report_mb))


def to_sharegpt(config: DictConfig) -> None:
    """A VLN-Ego folder as LLaMA-Factory trains on it."""
    ego, output, template, made_with = asked(config, "sharegpt")
    records, space = records_of(config, [ego]), ego.space or action_space(config)
    with claimed(output, ego, to="sharegpt", **made_with):
        write_sharegpt(records, template, space, output, name_of(ego.root))
        describe(config, ego, output, "sharegpt", **made_with)


def to_trl(config: DictConfig) -> None:
    """A VLN-Ego folder as `trl sft` and `trl grpo` train on it."""
    ego, output, template, made_with = asked(config, "trl")
    with claimed(output, ego, to="trl", **made_with):
        write_trl(records_of(config, [ego]), template, ego.space or action_space(config), output)
        describe(config, ego, output, "trl", **made_with)


def asked(config: DictConfig, to: str) -> tuple[VLNEgo, Path, PromptTemplate, dict[str, Any]]:
    """What a form with a prompt in every record is made from: data, folder, template, settings for its card."""
    source, output = folders(config, f"{{input}}_{to}")
    ego = VLNEgo(source)
    options = config.vlnr1
    made_with = {
        "memory": plain(options.memory),
        "num_actions": options.prompt.num_actions,
        "label_offset": options.data.label_offset,
        "template": options.convert.template,
    }
    return ego, output, get_template(options.convert.template), made_with


def to_parquet(config: DictConfig) -> None:
    """A VLN-Ego folder as Parquet shards."""
    source, output = folders(config, "{input}_parquet")
    ego = VLNEgo(source)
    with claimed(output, ego, to="parquet", columns=list(columns())):
        write_parquet(ego, output)
        describe(config, ego, output, "parquet")


def to_lerobot(config: DictConfig) -> None:
    """A VLN-Ego folder in LeRobot's dataset format."""
    source, output = folders(config, "{input}_lerobot")
    ego = VLNEgo(source)
    with claimed(output, ego, to="lerobot"):
        write_lerobot(ego, output)
        describe(config, ego, output, "lerobot")


@contextmanager
def claimed(output: Path, ego: VLNEgo, **made_with: Any) -> Iterator[None]:
    """Note what `output` is made from, or refuse it when it was made from something else; no other process converts
    into it meanwhile."""
    digest = sha256()
    for file in sorted(ego.root.glob("episodes*.jsonl")):
        digest.update(file.read_bytes())
    content = {"meta": ego.meta, "episodes": digest.hexdigest(), **made_with}
    with FolderLock(output, "convert"):
        claim_folder(output / SOURCE, content, "choose another vlnr1.convert.output")
        yield


def to_vln_ego(config: DictConfig) -> None:
    """ShareGPT JSON or Parquet shards as a VLN-Ego folder, which all trainers read."""
    options = config.vlnr1.convert
    if options.output is None:
        raise VLNR1Error("vlnr1.convert.output must be named, such as data/vln_ego/released/train")
    source, output = folders(config, "")
    if (source / "meta.json").is_file():
        raise RecordError(
            f"{source} is a VLN-Ego folder already; vlnr1.convert.to={{card, view, sharegpt, trl, parquet, lerobot}}"
        )
    meta, episodes, skipped, recorded = opened(config, source)
    first = next(episodes, None)
    if first is None:
        raise RecordError(f"{source}: no episode can be taken: {next(iter(skipped.values()), 'it has none')}")
    writer = EpisodeWriter(output, meta)
    try:
        for episode, *pictures in tqdm(chain([first], episodes), desc="episodes", unit="episode"):
            if episode.episode_id not in writer.done:
                writer.write(episode, *pictures)
    finally:
        writer.close()
    ego = VLNEgo(output)
    summary = recorded or {**summarize(ego.episodes), "skipped": skipped}
    write_atomically(output / "summary.json", json.dumps(summary, indent=2).encode())
    describe(config, ego, output, "vln_ego")
    for episode_id, reason in list(skipped.items())[:10]:
        print(f"skipped {episode_id}: {reason}")
    if skipped:
        print(f"skipped {len(skipped)} episodes; all reasons are in {output / 'summary.json'}")


def opened(
    config: DictConfig, source: Path
) -> tuple[dict[str, Any], Iterator[tuple[Episode, *tuple[list[Any], ...]]], dict[str, str], dict[str, Any] | None]:
    """What `to_vln_ego` reads: meta, episodes with their pictures, where skipped ones will be noted, and the summary
    that the data bring (None: none)."""
    if (source / "data").is_dir():
        shards = ParquetEpisodes(source)
        return shards.meta, shards.episodes(), {}, shards.summary
    images = config.vlnr1.convert.images
    released = read_sharegpt(source, Path(images) if images else None, config.vlnr1.data.label_offset)
    said = {"forward_step": released.forward_step, "turn_angle": released.turn_angle}
    meta = {
        "split": config.habitat.dataset.split,
        "protocol": {"name": "as the prompts say", **said},
        "released": {
            "file": source.name,
            "records": released.records,
            "num_actions": released.num_actions,
            "label_offset": released.label_offset,
            "records_with_other_history_than_uniform_16": released.other_history,
        },
        "first_label": released.first_label,
    }
    return meta, released.episodes(), released.skipped, None


def to_merged(config: DictConfig) -> None:
    """An adapter and all that it stands on, as one whole checkpoint: `<input>_merged`."""
    from habitat_vlnr1.lvlm import checkpoint  # with torch and Transformers, which no other conversion needs

    options = config.vlnr1.convert
    source = checkpoint.resolve(options.input)
    card = checkpoint.read_card(source)
    if not is_adapter(source) or card is None:
        raise CheckpointError(
            f"{source} is no adapter of ours ({ADAPTER_FILE} and {CARD_FILE}): name one, or a run's checkpoints, with "
            "vlnr1.convert.input"
        )
    output = Path(options.output or f"{source}_merged")
    made_from = origin(source, output)
    with checkpoint.only_maker(output):
        if output.exists():
            there = checkpoint.read_card(output)
            if there is None or there.info.get("merged", {}).get("weights") != made_from["weights"]:
                raise CheckpointError(f"{output} was made from something else: choose another vlnr1.convert.output")
            print(f"merged: {output} is there already")
            return
        model, processor = checkpoint.load(source)
        info = {key: value for key, value in card.info.items() if key != "start"} | {"merged": made_from}
        print(f"merged: {checkpoint.save(output, model, processor, replace(card, info=info))}")


def to_submission(config: DictConfig) -> None:
    """A leaderboard's file from an evaluation's results folder `<policy>/<split>`."""
    kind = config.vlnr1.convert.to.removesuffix("_submission")
    results, output = folders(config, "{input}")
    expected = expected_ids(config, kind, results.name)
    file, count = write_submission(kind, results, output, expected)
    print(f"{file}: {count} episodes, valid")


def expected_ids(config: DictConfig, kind: str, split: str) -> set[str] | None:
    """Ids that a split's submission must hold, from the configured data set; None, with a line, when it is absent."""
    dataset = edited(config, **{"habitat.dataset.split": split}).habitat.dataset
    try:
        episodes = make_dataset(dataset.type, config=dataset).episodes
    except FileNotFoundError as error:
        print(f"Whether all episodes of {split} are there is not checked: {error}")
        return None
    if kind == "rxr":
        return {str(getattr(episode.instruction, "instruction_id", None)) for episode in episodes}
    return {str(episode.episode_id) for episode in episodes}


CONVERSIONS = {
    "card": to_card,
    "view": to_view,
    "vln_ego": to_vln_ego,
    "sharegpt": to_sharegpt,
    "trl": to_trl,
    "parquet": to_parquet,
    "lerobot": to_lerobot,
    "merged": to_merged,
    "r2r_submission": to_submission,
    "rxr_submission": to_submission,
}
