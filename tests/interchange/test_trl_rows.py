"""Records for TRL's own commands: `datasets` opens them, and TRL trains on them without our code."""

import json

import pytest
from datasets import load_dataset

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.interchange import sharegpt, trl_rows
from habitat_vlnr1.interchange.trl_rows import write_trl
from habitat_vlnr1.lvlm.frames import read_frame
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode, RecordError, VLNEgo
from tests.tiny_run import SPACE, WORDS, jpeg, write_tiny_run


def write(root, packed):
    writer = EpisodeWriter(root, {"packed": packed})
    writer.write(Episode("1", "s", WORDS[0], (1, 3, 1, 0)), [jpeg(i) for i in range(4)])
    writer.write(Episode("2", "s", WORDS[1], (1, 3, 1, 0), frames_of="1"), [])
    writer.close()
    return VLNEgo(root)


def opened(folder, cache):
    return load_dataset(str(folder), data_files="data/*.parquet", split="train", cache_dir=str(cache))


@pytest.mark.parametrize("packed", [False, True])
def test_every_row_is_its_record(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(sharegpt, "RECORDS_PER_FILE", 5)
    monkeypatch.setattr(trl_rows, "RECORDS_PER_GROUP", 2)
    ego = write(tmp_path / "ego", packed)
    records = ego.records(make_memory("uniform", budget=2), 6)
    template, space = get_template("vln_ego"), ActionSpace(turn_angle=15)
    write_trl(records, template, space, tmp_path / "out")
    assert len(list((tmp_path / "out/frames").rglob("*.jpg"))) == 4
    assert len(list((tmp_path / "out/data").glob("*.parquet"))) == 2
    rows = opened(tmp_path / "out", tmp_path / "cache")
    assert len(rows) == len(records) == 8
    for row, record in zip(rows, records, strict=True):
        (asked,), (said,) = row["prompt"], row["completion"]
        parts = [{name: value for name, value in part.items() if value is not None} for part in asked["content"]]
        assert [{"role": "user", "content": parts}] == template.messages(
            record.instruction, len(record.history), 6, space
        )
        assert sum(part["type"] == "image" for part in parts) == len(row["images"]) == len(record.frames)
        assert (said["role"], said["content"][0]["text"]) == ("assistant", space.format(record.answer))
        assert row["actions"] == list(record.answer)
        for image, frame in zip(row["images"], record.frames, strict=True):
            assert image.tobytes() == read_frame(frame).tobytes()


def test_what_was_interrupted_goes_on_and_a_cut_frame_is_named(tmp_path):
    ego = write(tmp_path / "ego", packed=False)
    records = ego.records(make_memory("current"), 6)
    out = tmp_path / "out"
    write_trl(records, get_template("compact"), SPACE, out)
    first = out / "data/train-00000.parquet"
    before = first.stat().st_mtime_ns
    write_trl(records, get_template("compact"), SPACE, out)
    assert first.stat().st_mtime_ns == before
    frame = ego.root / ego.episodes[0].frame(2)
    frame.unlink()
    with pytest.raises(RecordError, match=r"0002.jpg: frame is missing"):
        write_trl(records, get_template("compact"), SPACE, tmp_path / "other")


def test_plain_trl_takes_a_step_of_sft_and_one_of_grpo(tmp_path):
    """The trainers that `trl sft` and `trl grpo` make, with their own collators."""
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    write_tiny_run(tmp_path)
    records = VLNEgo(tmp_path / "ego/embedded/train").records(make_memory("uniform", budget=2), 6)
    write_trl(records, get_template("compact"), SPACE, tmp_path / "out")
    rows = opened(tmp_path / "out", tmp_path / "cache")
    model = str(tmp_path / "run/checkpoints/checkpoint-7")
    common = {"max_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "bf16": False}
    sft = SFTTrainer(
        model,
        SFTConfig(str(tmp_path / "sft"), per_device_train_batch_size=2, max_length=None, **common),
        train_dataset=rows,
    )
    assert sft.train().training_loss > 0

    def first_letter(completions, actions, **columns):
        texts = [completion[0]["content"] for completion in completions]
        assert len(texts) == len(actions) and all(len(recorded) == 6 for recorded in actions)
        return [float(text.startswith("ABCD"[action[0] - 1])) for text, action in zip(texts, actions, strict=True)]

    settings = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 8, **common}
    grpo = GRPOTrainer(model, first_letter, GRPOConfig(str(tmp_path / "grpo"), **settings), train_dataset=rows)
    grpo.train()
    assert json.dumps(grpo.state.log_history).count("rewards/first_letter/mean") == 1
