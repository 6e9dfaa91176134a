"""What stands on what, and what tells checkpoints apart."""

import json
import shutil

import pytest

from habitat_vlnr1.weights import CheckpointError, chain, folder_fingerprint, origin


def whole(folder, content=b"whole"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    return folder


def adapter(folder, base, content=b"adapter", card=True, **settings):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "r": 4, **settings}))
    (folder / "adapter_model.safetensors").write_bytes(content)
    if card:
        (folder / "vlnr1.json").write_text(json.dumps({"info": {"start": origin(str(base), folder)}}))
    return folder


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """A model, SFT on it, RFT on that, all named relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    base = whole(tmp_path / "data/base")
    sft = adapter(tmp_path / "data/sft/checkpoint-1", "data/base")
    rft = adapter(tmp_path / "data/rft/checkpoint-2", "data/sft/checkpoint-1")
    return base, sft, rft


def test_fingerprint_tells_weights_apart(tmp_path):
    assert folder_fingerprint(tmp_path) is None
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"a" * 3_000_000)
    first = folder_fingerprint(tmp_path)
    assert folder_fingerprint(tmp_path) == first == folder_fingerprint(weights)
    weights.write_bytes(b"a" * 2_999_999 + b"b")
    assert folder_fingerprint(tmp_path) != first


def test_a_chain_goes_down_to_the_whole_model(stages):
    base, _, rft = stages
    assert [link.split("/")[-1] for link in chain(rft)] == ["checkpoint-2", "checkpoint-1", "base"]
    assert chain(base) == [str(base)] and chain("Qwen/Qwen2-VL-2B-Instruct") == ["Qwen/Qwen2-VL-2B-Instruct"]


def test_a_chain_is_found_from_elsewhere_and_when_it_was_moved_together(stages, tmp_path, monkeypatch):
    _, _, rft = stages
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(chain(rft)) == 3
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert chain(tmp_path / "moved/rft/checkpoint-2")[1:] == [
        str(tmp_path / "moved/sft/checkpoint-1"),
        str(tmp_path / "moved/base"),
    ]


def test_a_base_that_was_moved_alone_is_one_line_and_can_be_named(stages, tmp_path):
    _, sft, rft = stages
    shutil.move(sft, tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"checkpoint-2: .* put it back, or write where it is") as said:
        chain(rft)
    assert "\n" not in str(said.value)
    file = rft / "adapter_config.json"
    file.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "kept")}))
    assert chain(rft)[1:] == [str(tmp_path / "kept"), "data/base"]


def test_other_weights_in_the_place_of_the_base_are_refused(stages):
    base, sft, rft = stages
    (base / "model.safetensors").write_bytes(b"other")
    for top in (sft, rft):
        with pytest.raises(CheckpointError, match="has other weights now than this adapter was trained on"):
            chain(top)


def test_a_foreign_adapter_is_taken_at_its_word(stages, tmp_path):
    base, _, _ = stages
    assert chain(adapter(tmp_path / "foreign", base, card=False))[1] == str(base)
    assert chain(adapter(tmp_path / "hub", "user/model", card=False))[1] == "user/model"
    with pytest.raises(CheckpointError, match=r"trained on, \./gone/base, is not there"):
        chain(adapter(tmp_path / "lost", "./gone/base", card=False))
    with pytest.raises(CheckpointError, match="no base_model_name_or_path"):
        chain(adapter(tmp_path / "nameless", "", card=False))


def test_a_circle_is_refused(tmp_path):
    adapter(tmp_path / "a", tmp_path / "b", card=False)
    adapter(tmp_path / "b", tmp_path / "a", card=False)
    with pytest.raises(CheckpointError, match="in a circle"):
        chain(tmp_path / "a")


def test_a_fingerprint_knows_everything_below(tmp_path):
    """Another base, settings or a stage in the middle change it; another place does not."""
    base = whole(tmp_path / "base")
    sft = adapter(tmp_path / "sft", base, card=False)
    rft = adapter(tmp_path / "rft", sft, card=False)
    first = folder_fingerprint(rft)
    assert first["base"]["base"] == folder_fingerprint(base)
    for file, content in (
        (base / "model.safetensors", b"other"),
        (sft / "adapter_model.safetensors", b"other"),
        (sft / "adapter_config.json", json.dumps({"base_model_name_or_path": str(base), "r": 5}).encode()),
    ):
        before = file.read_bytes()
        file.write_bytes(content)
        assert folder_fingerprint(rft) != first
        file.write_bytes(before)
    shutil.copytree(base, tmp_path / "same")
    shutil.rmtree(sft)
    adapter(tmp_path / "sft", tmp_path / "same", card=False)
    assert folder_fingerprint(rft) == first
