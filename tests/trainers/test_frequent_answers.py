"""What a stage's data answers most often stands in its checkpoints' cards, and is what decoding tries first."""

import shutil
from pathlib import Path

from habitat_baselines.config.default import get_config

from habitat_vlnr1.actions import Action
from habitat_vlnr1.config import edited, make_decoder, records_of, trained_card
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.drafts import choose_drafts, paths_of
from habitat_vlnr1.records import VLNEgo
from tests.paths import CONFIGS
from tests.tiny_run import write_tiny_run


def test_from_the_data_to_the_decoder(tmp_path):
    home = write_tiny_run(tmp_path)
    options = [
        "vlnr1.run_dir=" + str(home / "run"),
        "vlnr1.data.root=" + str(home / "ego"),
        "vlnr1.model.image_size=56",
    ]
    config = get_config("vlnr1_sft.yaml", options, CONFIGS)
    records = records_of(config, [VLNEgo(home / "ego/embedded/train")])
    card = trained_card(config, "sft", records=records)
    assert card.frequent_answers == records.frequent_answers(32) != ()
    path = home / "run/checkpoints/checkpoint-7"
    checkpoint.write_card(path, card)
    assert trained_card(config, "rft", str(path)).frequent_answers == card.frequent_answers  # stage 2 takes stage 1's
    assert trained_card(config, "rft", "some/hub-id").frequent_answers == ()
    for count in (0, 1, 3):
        asked = edited(config, **{"vlnr1.decoding.drafts": count, "vlnr1.decoding.prefix_cache_mb": 2})
        decoder = make_decoder(asked, str(path))
        assert decoder._drafts == paths_of(choose_drafts(card.frequent_answers, count, 6), 6, stop_is_final=True)
        assert bool(decoder._drafts) == bool(count)
        assert decoder._prefixes.capacity == 2 * 2**20
    older = Path(shutil.copytree(path, home / "older"))  # a checkpoint of an earlier version
    checkpoint.write_card(older, trained_card(config, "sft"))
    assert make_decoder(config, str(older))._drafts == paths_of([(Action.FORWARD,) * 6], 6, stop_is_final=True)
