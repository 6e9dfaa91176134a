import pytest

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.prompt import TEMPLATES, get_template


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("num_history", [0, 1, 16])
def test_history_then_current_frame(name, num_history):
    messages = get_template(name).messages("Go to the lamp.", num_history, 6, ActionSpace())
    content = messages[-1]["content"]
    assert sum(part["type"] == "image" for part in content) == num_history + 1
    text_before_images = content[0]["text"]
    assert "Go to the lamp." in text_before_images
    assert all(part["type"] in ("text", "image") for part in content)


def test_vln_ego_names_the_angle_really_turned():
    messages = get_template("vln_ego").messages("Go.", 2, 6, ActionSpace(turn_angle=15))
    text = "".join(part.get("text", "<image>") for part in messages[0]["content"])
    assert "B. Turn left 15 degrees." in text
    assert "the next 6 actions" in text
    assert "30 degrees" not in text


def test_with_frames_last_a_growing_history_begins_as_the_prompt_before():
    earlier, later = (get_template("frames_last").messages("Go.", n, 6, ActionSpace())[0]["content"] for n in (3, 5))
    assert later[: len(earlier)] == earlier
    assert "the next 6 actions" in earlier[0]["text"] and [part["type"] for part in later[1:]] == ["image"] * 6


def test_unknown_template_names_the_known():
    with pytest.raises(ValueError, match="unknown prompt template 'x'; choose one of vln_ego, frames_last, compact"):
        get_template("x")


def short(instruction, num_history, num_actions, space):
    """A template that is not ours."""
    content = [{"type": "text", "text": instruction}, *[{"type": "image"}] * (num_history + 1)]
    return [{"role": "user", "content": content}]


def test_a_template_is_found_by_its_import_path():
    template = get_template("tests.test_prompt.short")
    assert template.name == "tests.test_prompt.short"
    assert len(template.messages("Go.", 2, 6, ActionSpace())[0]["content"]) == 4
    with pytest.raises(ValueError, match=r"unknown prompt template '.*long' \(.*\); choose one of vln_ego"):
        get_template("tests.test_prompt.long")
    with pytest.raises(ValueError, match="IMAGE' is no function"):
        get_template("habitat_vlnr1.prompt.IMAGE")
