"""What data were recorded with is what is taught: any stage refuses others before any work, and names both."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.config import check_sources, trained_card
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.records import Episode, RecordError
from tests.paths import CONFIGS

RECORDED = {"name": "embedded", "forward_step": 0.5, "turn_angle": 30}
MEMORY = {"strategy": "uniform", "budget": 1}


def export(source, protocol, split="train"):
    writer = EpisodeWriter(f"data/vln_ego/{source}/{split}", {} if protocol is None else {"protocol": protocol})
    writer.write(Episode("1", "s", "Stop.", (2, 0)), [encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90)] * 2)
    writer.close()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Sources `ours` and `embedded` (30 degrees), `fifteen`, `step` (another step), `unknown`; a start."""
    monkeypatch.chdir(tmp_path)
    others = {"fifteen": {"turn_angle": 15}, "step": {"forward_step": 0.25}}
    for source in ("ours", "embedded", *others):
        export(source, {**RECORDED, **others.get(source, {})})
    export("unknown", None)
    model, processor = build_tiny([], space=ActionSpace(0.5, 15), image_size=56)
    card = checkpoint.ModelCard(space=ActionSpace(0.5, 15), template="compact", memory=MEMORY, max_pixels=84**2)
    checkpoint.save("start", model, processor, card)

    def make(name, *overrides):
        start = {"vlnr1_rft_recorded": ["vlnr1.rft.start=start"], "vlnr1_dagger": ["vlnr1.dagger.start=start"]}.get(
            name, []
        )
        return get_config(f"{name}.yaml", ["vlnr1.task.scenes=null", *start, *overrides], CONFIGS)

    return make


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vlnr1_sft", ["vlnr1.data.sources=[embedded]"]),
        ("vlnr1_sft", ["vlnr1.data.sources=[fifteen,unknown,embedded]"]),
        ("vlnr1_sft", ["vlnr1.data.sources=[embedded]", "vlnr1.dry_run=true"]),
        ("vlnr1_rft_recorded", ["~vlnr1.data.rft_records", "+vlnr1.data.rft_records={embedded: 1}"]),
        ("vlnr1_rft_recorded", ["~vlnr1.data.rft_records", "+vlnr1.data.rft_records={fifteen: 1, embedded: 1}"]),
        (
            "vlnr1_rft_recorded",
            ["~vlnr1.data.rft_records", "+vlnr1.data.rft_records={embedded: 1}", "vlnr1.dry_run=true"],
        ),
        ("vlnr1_dagger", ["vlnr1.data.sources=[fifteen,embedded]", "vlnr1.data.source=fifteen"]),
        ("vlnr1_il", ["vlnr1.data.sources=[unknown,embedded]"]),
    ],
)
def test_every_stage_refuses_other_angles_before_any_work(config, name, overrides, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    made = config(name, "vlnr1.protocol.turn_angle=15", *overrides)
    with pytest.raises(RecordError) as said:
        baseline_registry.get_trainer(made.habitat_baselines.trainer_name)(made).train()
    told = str(said.value)
    assert "\n" not in told and "source embedded" in told and "vlnr1.data.root" in told
    assert re.search(r"turn_angle 30 and forward_step 0\.5, but .* turn_angle 15 and forward_step 0\.5", told)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_reward_is_measured_on_is_looked_at_too(config):
    export("fifteen", {**RECORDED, "turn_angle": 30}, split="val_unseen")
    made = config(
        "vlnr1_rft_recorded", "vlnr1.protocol.turn_angle=15", "vlnr1.data.source=fifteen", "~vlnr1.data.rft_records",
        "+vlnr1.data.rft_records={fifteen: 1}",
    )  # fmt: skip
    with pytest.raises(RecordError, match="fifteen/val_unseen: source fifteen was recorded with turn_angle 30"):
        baseline_registry.get_trainer("vlnr1_rft")(made).train()


def test_another_step_is_refused_and_what_is_unknown_is_not(config):
    made = config("vlnr1_sft")
    check_sources(made, [("embedded", "train"), ("ours", "train"), ("unknown", "train")])
    with pytest.raises(RecordError, match=r"source nothing is not exported.*vlnr1_export"):
        check_sources(made, [("nothing", "train")])
    check_sources(config("vlnr1_sft", "vlnr1.data.source=nothing"), [("nothing", "train")])
    with pytest.raises(RecordError, match=r"source step .* forward_step 0\.25, but .* forward_step 0\.5"):
        check_sources(made, [("step", "train")])
    meta = Path("data/vln_ego/unknown/train/meta.json")
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "protocol": None}))
    check_sources(made, [("unknown", "train")])


def test_the_card_says_how_the_frames_were_encoded(config):
    made = config("vlnr1_sft", "vlnr1.data.sources=[unknown,fifteen]")
    assert trained_card(made, "sft").jpeg_quality == made.vlnr1.export.jpeg_quality == 92
    meta = Path("data/vln_ego/fifteen/train/meta.json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"jpeg_quality": 75}))
    assert trained_card(made, "sft").jpeg_quality == 75
