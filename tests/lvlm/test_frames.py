"""Frames as Qwen's own `qwen_vl_utils` reads, scales and lays them out: ours are those."""

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info, smart_resize
from transformers import Qwen2VLImageProcessor

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm.frames import FrameCutter, FrameError, scaled
from habitat_vlnr1.lvlm.inputs import PromptEncoder, limit_pixels
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.prompt import get_template

SPACE = ActionSpace()
INSTRUCTION = "Go to the red table and stop."
SHAPES = [(28, 28), (56, 200), (128, 128), (224, 224), (256, 256), (480, 640), (640, 480), (512, 512), (97, 463)]
PATCHES = {"qwen2_vl": 14, "qwen3_vl": 16}


def picture(height, width, seed=0):
    """Coarse noise scaled up, as smooth as a camera's frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


def cutter(patch, max_pixels):
    processor = Qwen2VLImageProcessor(patch_size=patch)
    if max_pixels is not None:
        limit_pixels(type("Processor", (), {"image_processor": processor}), max_pixels)
    return FrameCutter(processor)


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
@pytest.mark.parametrize("max_pixels", [84**2, 65_536, 200_704, None])
def test_sizes_are_those_of_smart_resize(patch, max_pixels):
    cut = cutter(patch, max_pixels)
    limits = cut.processor.size
    for height, width in SHAPES:
        black = np.zeros((height, width, 3), np.uint8)
        wanted = smart_resize(height, width, 2 * patch, limits["shortest_edge"], limits["longest_edge"])
        assert tuple(side * patch for side in cut.cut(black).grid) == wanted
        assert scaled(black, cut.processor).size == wanted[::-1]


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
@pytest.mark.parametrize(("shape", "levels"), [((224, 224), 0), ((128, 128), 2), ((480, 640), 2)])
def test_pixels_differ_by_the_rounding_of_bicubic_scaling_alone(patch, shape, levels):
    """Pillow scales in `qwen_vl_utils`, torchvision in the processor; what needs none is the same bit for bit."""
    cut = cutter(patch, 84**2 if shape == (128, 128) else 65_536)
    frame = picture(*shape)
    image = scaled(frame, cut.processor)
    theirs = cut.processor(images=[image], return_tensors="pt")
    ours = cut.cut(frame)
    assert cut.grid_thw([ours]).tolist() == theirs["image_grid_thw"].tolist()
    fixed = cut.cut(np.array(image))  # no processor scales it again
    assert torch.equal(cut.pixel_values([fixed], single_slot=False), theirs["pixel_values"])
    off = (ours.pixels.int() - fixed.pixels.int()).abs()
    assert off.max() <= levels and (off > 0).float().mean() < 0.02


@pytest.mark.parametrize("template", ["compact", "vln_ego"])
def test_messages_are_laid_out_as_process_vision_info_does(template):
    _, processor = build_tiny([INSTRUCTION], space=SPACE)
    encoder = PromptEncoder(processor, get_template(template), 6, SPACE, max_pixels=84**2)
    frames = [picture(100, 120, seed) for seed in range(4)]
    messages = get_template(template).messages(INSTRUCTION, 3, 6, SPACE)
    limits = {"min_pixels": 56**2, "max_pixels": 84**2}
    shown = iter(frames)
    for message in messages:
        message["content"] = [
            {**part, "image": Image.fromarray(next(shown)), **limits} if part["type"] == "image" else part
            for part in message["content"]
        ]
    images, videos = process_vision_info(messages, image_patch_size=processor.image_processor.patch_size)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = processor(text=[text], images=images, videos=videos, return_tensors="pt")
    ours = encoder.prompts([encoder.query(INSTRUCTION, [np.array(image) for image in images])])
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, check_dtype=False, atol=1e-6, rtol=0)
    unscaled = encoder.prompts([encoder.query(INSTRUCTION, frames)])
    assert torch.equal(unscaled["input_ids"], ours["input_ids"])


def test_nothing_is_downloaded_for_a_name_that_looks_like_an_address(monkeypatch):
    monkeypatch.setattr("requests.get", lambda *args, **kwargs: pytest.fail("the network was asked"))
    with pytest.raises(FrameError, match="https://example"):
        scaled("https://example.org/frame.jpg", Qwen2VLImageProcessor())


def test_a_frame_of_which_nothing_is_left_is_named():
    with pytest.raises(FrameError, match="463 × 20 pixels cannot be scaled to at most 3136"):
        scaled(picture(20, 463), cutter(14, 56**2).processor)
