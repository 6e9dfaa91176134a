"""Training records as TRL's own commands read them: Parquet with `prompt`, `images` and `completion`.

    data/train-00000.parquet …      prompt and completion are chat messages, images are paths of frames below frames/
                                    and actions the numbers of the answer, for rewards

`trl sft --dataset_name <folder>` and `trl grpo --dataset_name <folder>` take such a folder as it is (TRL's
conversational prompt-completion form for models that see), and `datasets.load_dataset` opens the images when a row is
read. A record shows up to budget + 1 frames, and every frame is shown by many records: they stay files, once each.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.interchange.sharegpt import missing_files, place_frames
from habitat_vlnr1.prompt import PromptTemplate
from habitat_vlnr1.records import Record, Records

if TYPE_CHECKING:
    import pyarrow

RECORDS_PER_GROUP = 1000


def trl_row(record: Record, template: PromptTemplate, space: ActionSpace, frames: Path) -> dict[str, Any]:
    """One record.

    Args:
        frames: the folder, absolute, that the frames' paths are below.
    """
    shown = [str(frames / record.episode.frame(step)) for step in (*record.history, record.step)]
    said = [{"type": "text", "text": space.format(record.answer)}]
    return {
        "prompt": template.messages(record.instruction, len(record.history), len(record.answer), space),
        "images": [{"bytes": None, "path": path} for path in shown],
        "completion": [{"role": "assistant", "content": said}],
        "actions": [int(action) for action in record.answer],
    }


def write_trl(records: Records, template: PromptTemplate, space: ActionSpace, output: Path) -> None:
    """Write records as shards, and their frames beside; what an interrupted call has written whole stays.

    Raises:
        RecordError: a frame is missing or cut.
    """
    place_frames(records, output)
    (output / "data").mkdir(parents=True, exist_ok=True)
    frames = output.resolve()
    for file, span in missing_files(len(records), output / "data", "train-{:05d}.parquet"):
        _write_shard(file, (trl_row(records[i], template, space, frames) for i in span))


def _write_shard(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    half = file.with_name(f".{file.name}.half")
    with pq.ParquetWriter(half, schema, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            if len(group) == RECORDS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    half.replace(file)


def _schema() -> pyarrow.Schema:
    from datasets import Features, Image, List, Value

    messages = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
    features = {"prompt": messages, "images": List(Image()), "completion": messages, "actions": List(Value("int64"))}
    return Features(features).arrow_schema
