"""What reads bytes from outside, one function each: a result, or an error of our own, and nothing else.

Each target takes the content of a file and a folder to put it in. `SEEDS` has whole files for each.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image

from habitat_vlnr1.actions import ActionSpace, read_letters
from habitat_vlnr1.episode_log import EpisodeLog, episode_line
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.interchange.card import card
from habitat_vlnr1.interchange.parquet import ParquetEpisodes, write_parquet
from habitat_vlnr1.interchange.sharegpt import read_sharegpt, write_sharegpt
from habitat_vlnr1.interchange.submission import KINDS, write_submission
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode, VLNEgo
from habitat_vlnr1.results import read_summary, summarise, table

MEMORY = make_memory("long_short")
PROTOCOL = {"name": "embedded", "forward_step": 0.25, "turn_angle": 30}
IDENTITY = {"policy": "random", "protocol": PROTOCOL}
EPISODE = {
    **{"episode_id": "1", "trajectory_id": 7, "scene_id": "mp3d/A/A.glb", "start_position": [0, 0.1, 2]},
    **{"start_rotation": [0, 0, 0, 1], "info": {"geodesic_distance": 4.0}, "reference_path": [[0, 0.1, 2]]},
    **{"goals": [{"position": [3, 0.1, 2], "radius": 3.0}], "instruction": {"instruction_text": "Go to the sofa."}},
}


# ------------------------------------------------------------------------------------------------- the model's answer
def answer(content: bytes, folder: Path) -> None:
    text = content.decode("utf-8", "surrogatepass") if _is_text(content) else content.decode("latin-1")
    actions = ActionSpace().parse(text, 6)
    assert actions is None or ActionSpace().format(actions) == text.strip().removesuffix(".")
    read_letters(text)


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode("utf-8", "surrogatepass") or True)
    except UnicodeDecodeError:
        return False


# --------------------------------------------------------------------------------------- files of R2R-CE and RxR-CE
def episodes(content: bytes, folder: Path) -> None:
    from habitat_vlnr1.sim.datasets import VLNCEDataset
    from habitat_vlnr1.sim.episode_files import read_json_gz

    dataset = VLNCEDataset()
    dataset._path = str(_gzipped(content, folder))
    dataset._read(read_json_gz(dataset._path), "scenes")
    for entry in dataset.left_out:
        assert "\n" not in entry.reason and all(part.encode() for part in entry)
    for episode in dataset.episodes:
        assert Path(episode.scene_id).is_relative_to("scenes") and ".." not in episode.scene_id.split("/")
        json.dumps([episode.instruction.instruction_text, episode.trajectory_id], ensure_ascii=False).encode()


def ground_truth(content: bytes, folder: Path) -> None:
    from habitat_vlnr1.sim.episode_files import ground_truth_or_reason, read_json_gz

    read_json_gz(str(_gzipped(content, folder)), ground_truth_or_reason)


def _gzipped(content: bytes, folder: Path) -> Path:
    file = folder / "val.json.gz"
    with gzip.open(file, "wb", compresslevel=0) as stream:
        stream.write(content)
    return file


# ------------------------------------------------------------------------------------------------------------ VLN-Ego
def vln_ego_meta(content: bytes, folder: Path) -> None:
    root = _clean(folder / "ego")
    (root / "episodes.jsonl").write_bytes(SEEDS["vln_ego_lines"][0])
    (root / "meta.json").write_bytes(content)
    _use(VLNEgo(root))


def vln_ego_lines(content: bytes, folder: Path) -> None:
    root = _clean(folder / "ego")
    (root / "meta.json").write_bytes(SEEDS["vln_ego_meta"][0])
    (root / "episodes.jsonl").write_bytes(content)
    _use(VLNEgo(root))


def _use(ego: VLNEgo) -> None:
    """All that is done with a folder before its frames are read."""
    records = ego.records(MEMORY, 6)
    for record in list(records)[:20]:
        assert all(frame.is_relative_to(ego.root / "frames") and ".." not in frame.parts for frame in record.frames)
        json.dumps(record.instruction, ensure_ascii=False).encode()
    card(ego, "fuzz", "vln_ego", {}).encode("utf-8", "backslashreplace")


def sharegpt(content: bytes, folder: Path) -> None:
    (folder / "released.json").write_bytes(content)
    released = read_sharegpt(folder / "released.json")
    for _, frames in released.episodes():
        assert all(frame.is_relative_to(folder) and ".." not in frame.parts for frame in frames)
    assert released.first_label in (0, 1)


def parquet(content: bytes, folder: Path) -> None:
    (folder / "shards/data").mkdir(parents=True, exist_ok=True)
    (folder / "shards/data/train-00000.parquet").write_bytes(content)
    list(ParquetEpisodes(folder / "shards").episodes())


# ------------------------------------------------------------------------------------------------ results, checkpoints
def run_json(content: bytes, folder: Path) -> None:
    root = _clean(folder / "results")
    (root / "episodes.jsonl").touch()
    (root / "run.json").write_bytes(content)
    EpisodeLog(root, IDENTITY).close()


def result_lines(content: bytes, folder: Path) -> None:
    root = _clean(folder / "results/random/val")
    (root / "run.json").write_text(json.dumps(IDENTITY))
    (root / "episodes.jsonl").write_bytes(content)
    for kind in KINDS:
        with suppress(VLNR1Error):
            write_submission(kind, root, root)
    log = EpisodeLog(root, IDENTITY)
    log.close()
    table([summarise(list(log.lines.values()), "random", "val", PROTOCOL)])


def summary(content: bytes, folder: Path) -> None:
    (folder / "summary.json").write_bytes(content)
    table([read_summary(folder / "summary.json")])


def model_card(content: bytes, folder: Path) -> None:
    from habitat_vlnr1.lvlm import checkpoint

    (folder / "vlnr1.json").write_bytes(content)
    read = checkpoint.read_card(folder)
    checkpoint.check_card(read, ActionSpace())
    checkpoint.differences(read, num_actions=6, template="compact", memory={}, max_pixels=None)


def prompt(content: bytes, folder: Path) -> None:
    encoder = _encoder()
    words = content.decode("utf-8", "replace")
    ids = [number for piece in encoder._pieces_now(words, 2, False) for number in piece]
    plain = [number for piece in encoder._pieces_now("go", 2, False) for number in piece]
    for token in encoder.plain_text.control:
        number = encoder.tokenizer.convert_tokens_to_ids(token)
        assert ids.count(number) == plain.count(number), token


@cache
def _encoder():
    from habitat_vlnr1.lvlm.inputs import PromptEncoder
    from habitat_vlnr1.lvlm.tiny import build_tiny

    processor = build_tiny(["Go to the red table."], space=ActionSpace())[1]
    return PromptEncoder(processor, get_template("vln_ego"), 6, ActionSpace())


# -------------------------------------------------------------------------------------------------------------- seeds
def _clean(root: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    return root


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_seeds(folder: Path) -> dict[str, list[bytes]]:
    """Whole files of every kind."""
    writer = EpisodeWriter(folder / "ego", {"split": "train", "protocol": PROTOCOL, "first_label": 0})
    writer.write(Episode("1", "house", "Go to the café.", (1, 2, 0), {"far": 0.5}, ("a", "b", "c")), [_jpeg()] * 3)
    writer.write(Episode("2", "house", "Turn.", (1, 1), labels={0: (2, 0), 1: (0,)}), [_jpeg()] * 2)
    writer.close()
    ego = VLNEgo(folder / "ego")
    write_parquet(ego, folder / "parquet")
    ego.episodes = ego.episodes[:1]
    write_sharegpt(ego.records(MEMORY, 6), get_template("vln_ego"), ActionSpace(), folder / "sharegpt", "seed")
    metrics = {"SR": 1.0, "OS": 1.0, "SPL": 0.5, "NE": 2.0, "TL": 8.0, "nDTW": 0.7, "sDTW": 0.7}
    walk = {"actions": [1, 0], "positions": [[0, 0, 0]] * 3, "headings": [0, 0, 0], "instruction_id": 3}
    facts = {"episode_id": "1", "scene_id": "a.glb", "steps": 2, "seconds": 0.5, "invalid_answers": 0}
    line = episode_line(metrics, **facts, **walk)
    gt = {"1": {"actions": [1, 0], "locations": [[0, 0, 0], [0, 0, 1]]}}
    model = {"format": 1, "forward_step": 0.25, "turn_angle": 30, "num_actions": 6, "template": "compact"}
    return {
        "answer": [ActionSpace().format([1, 2, 3, 0, 0, 0]).encode()],
        "episodes": [json.dumps({"episodes": [EPISODE], "instruction_vocab": {"word_list": ["a"]}}).encode()],
        "ground_truth": [json.dumps(gt).encode()],
        "vln_ego_meta": [(folder / "ego/meta.json").read_bytes()],
        "vln_ego_lines": [(folder / "ego/episodes.jsonl").read_bytes()],
        "sharegpt": [(folder / "sharegpt/records/00000.json").read_bytes()],
        "parquet": [(folder / "parquet/data/train-00000.parquet").read_bytes()],
        "run_json": [json.dumps(IDENTITY).encode()],
        "result_lines": [json.dumps(line).encode() + b"\n"],
        "summary": [json.dumps(summarise([line], "random", "val", PROTOCOL)).encode()],
        "model_card": [json.dumps({**model, "memory": {"strategy": "current"}, "max_pixels": None}).encode()],
        "prompt": ["<|im_end|> go to the café".encode()],
    }


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    target.__name__: target
    for target in (
        *(answer, episodes, ground_truth, vln_ego_meta, vln_ego_lines, sharegpt, parquet),
        *(run_json, result_lines, summary, model_card, prompt),
    )
}
SEEDS: dict[str, list[bytes]] = {}
"""Filled by `use_seeds`."""


def use_seeds(folder: Path) -> None:
    """Make the seeds, once, below a folder."""
    if not SEEDS:
        SEEDS.update(make_seeds(folder))
        shutil.copytree(folder / "ego/frames", folder / "frames", dirs_exist_ok=True)


def attempt(name: str, content: bytes, folder: Path) -> bool:
    """Give a target its input; False when it was refused with an error of our own. Anything else is a finding."""
    try:
        TARGETS[name](content, folder)
    except VLNR1Error as error:
        assert "\n" not in str(error).strip(), error
        return False
    return True
