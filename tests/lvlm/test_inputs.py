"""What the encoder makes equals the stock processor token for token and pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm.fast_vision import is_fast, speed_up_vision
from habitat_vlnr1.lvlm.frames import FrameError
from habitat_vlnr1.lvlm.inputs import IGNORED, Described, PromptEncoder, SFTCollator, answer_loss
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.prompt import get_template

SPACE = ActionSpace()
INSTRUCTIONS = [
    "Go to the red table and stop.",
    "Walk past the blue sofa, then turn left 90 degrees; café ça va? Stop, A. Move forward 25 cm",
]
ANSWER = (1, 1, 2, 3, 0, 0)


@pytest.fixture(scope="module")
def made():
    return build_tiny(INSTRUCTIONS[:1], space=SPACE)


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (100, 120, 3), dtype=np.uint8) for _ in range(6)]


def stock(processor, template, instruction, frames, answer=None):
    messages = get_template(template).messages(instruction, len(frames) - 1, len(ANSWER), SPACE)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if answer is not None:
        text = processor.apply_chat_template(
            [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}], tokenize=False
        )
    return processor(text=[text], images=frames, return_tensors="pt")


@pytest.mark.parametrize("template", ["compact", "vln_ego"])
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@pytest.mark.parametrize("num_history", [0, 3])
def test_prompt_equals_stock(made, frames, template, instruction, num_history):
    model, processor = made
    encoder = PromptEncoder(processor, get_template(template), len(ANSWER), SPACE)
    shown = frames[: num_history + 1]
    wanted = stock(processor, template, instruction, shown)
    query = encoder.query(instruction, shown)
    batch = encoder.prompts([query])
    assert set(batch) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(batch[name], tensor, check_dtype=False, atol=1e-6, rtol=0)
    positions, _ = model.model.get_rope_index(**wanted)
    assert np.array_equal(query.positions, positions[:, 0].numpy())


@pytest.mark.parametrize("template", ["compact", "vln_ego"])
def test_training_sequence_is_the_stock_conversation_without_its_last_newline(made, frames, template):
    _, processor = made
    encoder = PromptEncoder(processor, get_template(template), len(ANSWER), SPACE)
    answer = SPACE.format(ANSWER)
    wanted = stock(processor, template, INSTRUCTIONS[1], frames[:2], answer)["input_ids"][0]
    query = encoder.query(INSTRUCTIONS[1], frames[:2])
    batch = encoder.training_batch([query], [encoder.answer_ids(ANSWER)])
    tokens = batch["input_ids"][0]
    assert tokens.tolist() == wanted[:-1].tolist()
    assert processor.tokenizer.decode(wanted[-1:]) == "\n"


def test_loss_is_on_letters_descriptions_and_end_token_alone(made, frames):
    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE)
    queries = [encoder.query(INSTRUCTIONS[0], frames[:1]), encoder.query(INSTRUCTIONS[1], frames[:3])]
    answers = [ANSWER, (0,) * 6]
    batch = encoder.training_batch(queries, [encoder.answer_ids(answer) for answer in answers])
    for row, answer in enumerate(answers):
        labels, ids = batch["labels"][row], batch["input_ids"][row]
        trained = labels != IGNORED
        assert torch.equal(labels[trained], ids[trained])
        assert processor.tokenizer.decode(ids[trained]) == SPACE.format(answer) + "<|im_end|>"
        # one unbroken span, right behind the prompt, and padding is behind it
        first, last = trained.nonzero()[[0, -1], 0].tolist()
        assert first == len(queries[row].ids) and trained[first : last + 1].all()
        assert batch["attention_mask"][row].sum() == last + 1


def test_position_ids_equal_the_models_own(made, frames):
    model, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE)
    queries = [encoder.query(INSTRUCTIONS[0], frames[:1]), encoder.query(INSTRUCTIONS[1], frames[:3])]
    batch = encoder.training_batch(queries, [encoder.answer_ids(ANSWER)] * 2)
    own, _ = model.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    assert torch.equal(batch["position_ids"], own)


def test_answer_loss_equals_the_models_own_and_so_do_its_gradients(made, frames):
    model, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE)
    queries = [encoder.query(INSTRUCTIONS[0], frames[:1]), encoder.query(INSTRUCTIONS[1], frames[:3])]
    batch = encoder.training_batch(queries, [encoder.answer_ids(ANSWER)] * 2)
    gradients = []
    for loss in (model(**batch).loss, answer_loss(model, batch)):
        model.zero_grad()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad()
    torch.testing.assert_close(answer_loss(model, batch), model(**batch).loss)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_fast_vision_changes_nothing_but_speed(frames):
    slow, processor = build_tiny(INSTRUCTIONS, space=SPACE)
    fast, _ = build_tiny(INSTRUCTIONS, space=SPACE)
    names = list(slow.state_dict())
    speed_up_vision(fast)
    speed_up_vision(fast)
    assert is_fast(fast) and not is_fast(slow) and list(fast.state_dict()) == names
    plain = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE)
    single = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE, single_slot=True)
    answers = [plain.answer_ids(ANSWER)] * 2
    wide = np.ascontiguousarray(frames[5][:50])  # another grid: frames of unequal size in one batch
    for images in ([frames[:1], frames[1:2]], [frames[:2], [frames[1], frames[0], frames[2]]], [[wide], frames[:2]]):
        keys = [[(id(frame),) for frame in row] for row in images]
        stock_batch = plain.training_batch(_queries(plain, images, keys), answers)
        batches = [
            stock_batch,
            single.training_batch(_queries(single, images, keys), answers),
        ]
        wanted = slow(**stock_batch)
        wanted.loss.backward()
        for batch in batches:
            fast.zero_grad()
            got = fast(**batch)
            got.loss.backward()
            torch.testing.assert_close(got.logits, wanted.logits, atol=1e-5, rtol=1e-5)
            for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3, msg=name)
        slow.zero_grad()


def test_fast_vision_in_half_precision(frames):
    slow, processor = build_tiny(INSTRUCTIONS, space=SPACE)
    fast, _ = build_tiny(INSTRUCTIONS, space=SPACE)
    speed_up_vision(fast)
    encoder = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE)
    query = encoder.query(INSTRUCTIONS[0], frames[:3])
    answers = [encoder.answer_ids(ANSWER)]
    exact = slow(**encoder.training_batch([query], answers)).logits
    stock = slow.bfloat16()(**encoder.training_batch([query], answers)).logits
    encoder.single_slot = True
    got = fast.bfloat16()(**encoder.training_batch([query], answers)).logits
    # As far from the float32 result as stock is, and no further.
    assert (got - exact).abs().mean() < 1.2 * (stock - exact).abs().mean()


def _queries(encoder, images, keys):
    return [encoder.query(INSTRUCTIONS[i], row, keys[i]) for i, row in enumerate(images)]


def test_distinct_frames_are_given_once(made, frames):
    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE, single_slot=True)
    queries = [
        encoder.query("x", [frames[0], frames[1], frames[2]], [("a", 0), ("a", 1), ("a", 2)]),
        encoder.query("x", [frames[0], frames[2], frames[1]], [("a", 0), ("a", 2), ("a", 1)]),
    ]
    batch = encoder.training_batch(queries, [encoder.answer_ids(ANSWER)] * 2, groups=[0, 0])
    assert batch["image_index"].tolist() == [0, 1, 2, 2, 1]  # the first one is common
    assert len(batch["image_grid_thw"]) == 5
    assert batch["pixel_values"].shape == (3 * 24, 3 * 14 * 14)  # 100 x 120 pixels become 56 x 84


def test_collator_reads_files_once_and_text_answers(made, tmp_path, monkeypatch):
    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), len(ANSWER), SPACE)
    for i in range(3):
        Image.fromarray(np.full((84, 84, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.jpg")
    files = [tmp_path / f"{i}.jpg" for i in range(3)]
    examples = [Described("Describe.", files[:1], "ahead 1 m red sofa"), Described("Describe.", files, "door")]
    opened = []
    monkeypatch.setattr("habitat_vlnr1.lvlm.frames.read_frame", lambda f: opened.append(f) or np.array(Image.open(f)))
    collate = SFTCollator(encoder, examples.__getitem__)
    for _ in range(2):
        batch = collate([{"index": [0]}, {"index": [1]}])
    assert sorted(opened) == files
    trained = batch["input_ids"][0][batch["labels"][0] != IGNORED]
    assert processor.tokenizer.decode(trained) == "ahead 1 m red sofa<|im_end|>"


def test_frame_cache_is_bounded(made, frames):
    _, processor = made
    one = 36 * 3 * 14 * 14
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, cache_mb=2.5 * one / 2**20)
    for i, frame in enumerate(frames):
        encoder.query("x", [np.ascontiguousarray(frame[:84, :84])], [i])
    assert list(encoder.cutter._kept) == [4, 5]


def test_bad_input_says_what(made, frames, tmp_path):
    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE)
    with pytest.raises(FrameError, match="uint8"):
        encoder.query("x", [frames[0].astype(np.float32)])
    with pytest.raises(FrameError, match=r"gone\.jpg"):
        encoder.query("x", [tmp_path / "gone.jpg"])
    with pytest.raises(ValueError, match="at least the current frame"):
        encoder.query("x", [])
    with pytest.raises(ValueError, match="max_pixels"):
        PromptEncoder(processor, get_template("compact"), 6, SPACE, max_pixels=100)
