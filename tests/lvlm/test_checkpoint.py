"""Checkpoints are written whole, come back the same, and refuse to be asked under other angles."""

import json

import pytest
import torch

from habitat_vlnr1 import lock
from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.checkpoint import CheckpointError, ModelCard
from habitat_vlnr1.lvlm.tiny import build_tiny

SPACE = ActionSpace()
CARD = ModelCard(
    space=SPACE,
    num_actions=4,
    template="compact",
    memory={"strategy": "current", "budget": 0},
    max_pixels=7056,
    frequent_answers=((Action.FORWARD,) * 4, (Action.LEFT, Action.FORWARD, Action.RIGHT, Action.STOP)),
)


@pytest.fixture(scope="module")
def made():
    return build_tiny(["go to the red table and stop"], space=SPACE)


def test_round_trip(made, tmp_path):
    model, processor = made
    folder = checkpoint.save(tmp_path / "a", model, processor, CARD)
    again, processor_again = checkpoint.load(folder)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    text = "go to the red table, A. Move forward 25 cm, D. Stop<|im_end|>\n"
    assert processor_again.tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    assert processor_again.tokenizer.decode(processor.tokenizer(text).input_ids) == text
    assert processor_again.image_processor.size == processor.image_processor.size
    assert checkpoint.read_card(folder) == CARD
    assert again.dtype == torch.float32 and not again.training


def test_saving_over_a_checkpoint_leaves_the_new_one_and_nothing_else(made, tmp_path):
    model, processor = made
    checkpoint.save(tmp_path / "a", model, processor, CARD)
    checkpoint.save(tmp_path / "a", model, processor, ModelCard(num_actions=8))
    assert checkpoint.read_card(tmp_path / "a").num_actions == 8
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_failed_save_keeps_the_old_checkpoint(made, tmp_path, monkeypatch):
    model, processor = made
    checkpoint.save(tmp_path / "a", model, processor, CARD)

    def full_disk(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr(processor, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path / "a", model, processor, ModelCard(num_actions=8))
    assert checkpoint.read_card(tmp_path / "a") == CARD
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_checkpoint_has_one_maker_and_what_a_killed_save_has_left_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.1)
    for left in (".base.half-x7", ".base2.half-x7", ".base[1].half-x7"):
        (tmp_path / left).mkdir()
    with checkpoint.only_maker(tmp_path / "base"), pytest.raises(lock.FolderInUse):
        lock.FolderLock(tmp_path, "base")
    with checkpoint.only_maker(tmp_path / "base[1]"):
        pass
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [".base2.half-x7"]


def test_adapter_folder_loads_its_base_and_merges(made, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, processor = made
    base = checkpoint.save(tmp_path / "base", model, processor, CARD)
    fresh, _ = checkpoint.load(base)
    tuned = get_peft_model(fresh, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    checkpoint.save(tmp_path / "lora", tuned, processor, CARD)
    assert not (tmp_path / "lora" / "model.safetensors").exists()
    merged, _ = checkpoint.load(tmp_path / "lora")
    also, _ = checkpoint.load(base, adapter=tmp_path / "lora")
    ids = torch.tensor([[1, 2, 3]])
    wanted = tuned(input_ids=ids).logits
    for loaded in (merged, also):
        torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(input_ids=ids).logits, wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (ActionSpace(turn_angle=15), "turn_angle 30, but the simulator is configured with 15"),
        (ActionSpace(forward_step=0.5), "forward_step 0.25, but the simulator is configured with 0.5"),
    ],
)
def test_other_angles_are_refused_unless_allowed(space, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.check_card(CARD, space)
    assert "\n" not in str(caught.value)
    checkpoint.check_card(CARD, space, allow=True)
    checkpoint.check_card(CARD, SPACE)
    checkpoint.check_card(None, space)


def test_errors_are_one_line_and_name_the_path(tmp_path):
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for path, message in [
        (tmp_path / "nothing", "no such checkpoint folder"),
        (tmp_path / "empty", "without config.json"),
        (other, "'bert' is not supported"),
    ]:
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "whether"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", True),
        ("my_run/checkpoints", False),  # a run that is not there
        ("my_run/checkpoints/checkpoint-100", False),
        ("./Qwen/Qwen2-VL-2B-Instruct", False),
        ("/Qwen/Qwen2-VL-2B-Instruct", False),
        ("Qwen2-VL-2B-Instruct", False),
    ],
)
def test_what_can_be_a_folder_alone_is_not_taken_for_a_hub_id(path, whether, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint.is_checkpoint(path) is whether


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 99}', "format 99"),
        ("", "empty"),
        ('{"format": 1, "forw', "not JSON"),
        ("[1]", "holds list instead of dict"),
        ('{"format": 1, "forward_step": "far", "turn_angle": 30}', "forward_step must be in"),
        ('{"format": 1, "forward_step": 0.25}', "no key 'turn_angle'"),
        (json.dumps(CARD.to_json() | {"num_actions": "six"}), "num_actions is 'six'"),
        (json.dumps(CARD.to_json() | {"memory": None}), "memory is None"),
        (json.dumps(CARD.to_json() | {"jpeg_quality": "high"}), "jpeg_quality is 'high'"),
        (json.dumps(CARD.to_json() | {"frequent_answers": 3}), "frequent_answers is 3"),
        (json.dumps(CARD.to_json() | {"frequent_answers": ["AAX"]}), "frequent_answers has 'AAX', which is no answer"),
    ],
)
def test_broken_card_is_named(tmp_path, content, message):
    (tmp_path / "vlnr1.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"vlnr1\.json: {message}.*; restore the file or save the checkpoint"):
        checkpoint.read_card(tmp_path)
    assert checkpoint.read_card(tmp_path / "elsewhere") is None
