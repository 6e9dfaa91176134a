"""The rehearsal: the job in miniature through the real trainers, without the weights that the config names."""

import pytest
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config

from habitat_vlnr1.errors import MissingFileError, RunError
from habitat_vlnr1.trainers import rehearsal
from tests.paths import CONFIGS

SHAPE = [
    "vlnr1/model=qwen2_vl_2b",
    "vlnr1.model.dtype=float32",
    "vlnr1.model.image_size=56",
    "vlnr1.model.cpu_threads=1",
    *(f"vlnr1.model.architecture.text_config.{key}" for key in (
        "hidden_size=256", "intermediate_size=256", "num_hidden_layers=2", "num_attention_heads=2",
        "num_key_value_heads=1", "vocab_size=2048")),
    *(f"vlnr1.model.architecture.vision_config.{key}" for key in (
        "depth=2", "embed_dim=64", "num_heads=2", "hidden_size=256")),
]  # fmt: skip
HOUSES = [
    *(f"vlnr1.task.scenes.{key}" for key in (
        "train_scenes=1", "train_episodes_per_scene=2", "val_seen_episodes=1", "val_unseen_scenes=1",
        "val_unseen_episodes_per_scene=2")),
    "vlnr1.protocol.max_steps=12",
    "vlnr1.export.describe=false",
    "vlnr1.rft.per_device_train_batch_size=8",
]  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in rehearsal.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    overrides = [*SHAPE, *HOUSES, "vlnr1.doctor.rehearse=true"]
    return lambda *more: get_config("vlnr1_doctor.yaml", [*overrides, *more], CONFIGS)


@pytest.mark.slow
def test_both_stages_and_an_evaluation_run_and_are_held_against_the_plan(config, tmp_path, capsys):
    config = config()
    baseline_registry.get_trainer("vlnr1_doctor")(config).train()
    printed = capsys.readouterr().out
    for stage in ("export", "sft", "rft", "evaluation"):
        assert f"\n  {stage}" in printed
    for stage in ("sft", "rft"):
        assert f"{stage}: host" in printed and f"{stage}: " in printed and "steps an hour" in printed
    folder = tmp_path / "data/vlnr1/quickstart/rehearsal"
    assert (folder / "run/checkpoints/checkpoint-3/vlnr1.json").is_file()
    assert (folder / "run/rft/checkpoints/checkpoint-3/vlnr1.json").is_file()
    assert list((folder / "run").rglob("summary.json"))
    assert not (tmp_path / "data/vln_ego").exists()  # what the job itself will write is left alone


def test_a_stage_that_fails_is_named_with_its_last_line(config, monkeypatch):
    config = config()
    monkeypatch.setattr(rehearsal.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"rehearsal's export failed: no output \(process 0, see .*export-0.log\)"):
        rehearsal.rehearse(config)


def test_an_unknown_shape_is_refused_before_anything_runs(config):
    with pytest.raises(MissingFileError, match="some/model is not on this machine"):
        rehearsal.rehearse(config("vlnr1.model.path=some/model"))
