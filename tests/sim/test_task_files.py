"""What tells one task's files from another's: their content, not their names, ids or bytes on disk."""

import gzip
import json

import pytest
from omegaconf import OmegaConf

from habitat_vlnr1.episode_writer import check_claim, claim_folder
from habitat_vlnr1.files import differences
from habitat_vlnr1.records import RecordError
from habitat_vlnr1.sim.datasets import RxRVLNCEDatasetConfig, VLNCEDatasetConfig
from habitat_vlnr1.sim.task_files import task_identity


def write(path, content, mtime=0):
    path.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=mtime))


@pytest.fixture
def identity(tmp_path):
    scene = tmp_path / "scenes/mp3d/X/X.glb"
    scene.parent.mkdir(parents=True)
    scene.write_bytes(b"glTF")
    write(tmp_path / "train.json.gz", {"episodes": [{"scene_id": "mp3d/X/X.glb"}, {"scene_id": "mp3d/Y/Y.glb"}]})
    write(tmp_path / "train_gt.json.gz", {"1": {}})
    paths = {"data_path": f"{tmp_path}/{{split}}.json.gz", "gt_path": f"{tmp_path}/{{split}}_gt.json.gz"}

    def of(kind=VLNCEDatasetConfig, **settings):
        dataset = OmegaConf.structured(kind(**{**paths, "scenes_dir": f"{tmp_path}/scenes", **settings}))
        config = {"habitat": {"dataset": dataset}, "vlnr1": {"task": {"name": "t"}}}
        return task_identity(OmegaConf.create(config), "train")

    return of


def test_content_decides(identity, tmp_path):
    before = identity()
    assert set(before["episodes"]) == {"train.json.gz"} and before["scenes"] == {"mp3d/X/X.glb": 4}
    write(tmp_path / "train.json.gz", json.loads(gzip.decompress((tmp_path / "train.json.gz").read_bytes())), mtime=5)
    assert differences(before, identity()) == []  # packed again
    assert differences(before, identity(episode_ids=["1"], max_episodes=1, num_shards=4)) == []
    write(tmp_path / "train_gt.json.gz", {"2": {}})
    (difference,) = differences(before, identity())
    assert difference.startswith("ground_truth.train_gt.json.gz: ")
    assert [d.split(":")[0] for d in differences(before, identity(gt_path=None))] == ["ground_truth.train_gt.json.gz"]


def test_a_scene_that_was_fetched_since_is_no_difference_but_another_is(identity, tmp_path):
    before = identity()
    (tmp_path / "scenes/mp3d/Y").mkdir()
    (tmp_path / "scenes/mp3d/Y/Y.glb").write_bytes(b"glTF2")
    assert differences({"task": before}, {"task": identity()}) == []
    (tmp_path / "scenes/mp3d/X/X.glb").write_bytes(b"glTF!")
    assert differences({"task": before}, {"task": identity()}) == ["task.scenes.mp3d/X/X.glb: 4 there, 5 now"]


def test_roles_and_languages_count_and_missing_files_do_not_fail(identity):
    hindi = identity(RxRVLNCEDatasetConfig, languages=["hi-IN"])
    assert (hindi["roles"], hindi["languages"]) == (["guide"], ["hi-IN"])
    assert identity(data_path="nowhere/{split}.json.gz")["episodes"] == {}


def test_a_folder_made_from_other_episodes_is_refused_and_an_old_one_is_taken_with_a_line(identity, tmp_path, capsys):
    meta = tmp_path / "ego/meta.json"
    claim_folder(meta, {"split": "train", "task": identity()}, "choose another source")
    write(tmp_path / "train.json.gz", {"episodes": [{"scene_id": "mp3d/X/X.glb", "words": "other"}]})
    with pytest.raises(RecordError, match=r"ego was made from something else \(task.episodes.train.json.gz: .*choose"):
        claim_folder(meta, {"split": "train", "task": identity()}, "choose another source")
    meta.write_text('{"split": "train"}')
    check_claim(meta, {"split": "train", "task": identity()}, "choose another source")
    assert "does not say which episodes" in capsys.readouterr().out
    meta.write_text("")
    with pytest.raises(RecordError, match=r"meta.json: empty; .*export again"):
        check_claim(meta, {}, "")
