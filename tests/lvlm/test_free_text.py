import numpy as np
import pytest

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.decoding import load_decoder
from habitat_vlnr1.lvlm.free_text import TextDecoder, load_text_decoder
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.prompt import get_template

SPACE = ActionSpace(0.5, 30)
QUESTIONS = ["What colour is the sofa?", "In which room is the red bed, and why?", "Hm"]


@pytest.fixture(scope="module")
def tiny():
    return build_tiny([*QUESTIONS, "red", "blue room"], space=SPACE, image_size=56)


def frames(count):
    rng = np.random.default_rng(count)
    return [rng.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(count)]


def decoder(tiny, template="compact"):
    model, processor = tiny
    encoder = PromptEncoder(processor, get_template(template), 6, SPACE, max_pixels=56**2)
    return TextDecoder(model, encoder, max_new_tokens=8)


@pytest.mark.parametrize("template", ["compact", "vln_ego"])
def test_answers_are_those_of_generate_for_each_question_alone(tiny, template):
    ask, shown = decoder(tiny, template), frames(3)
    encoder, model = ask.encoder, ask.model
    answers = ask.answer(QUESTIONS, shown)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        batch = encoder.prompts([encoder.query(question, shown, is_question=True)], single_slot=True)
        options = {"do_sample": False, "eos_token_id": encoder.end_id, "pad_token_id": encoder.pad_id}
        ids = model.generate(**batch, max_new_tokens=8, **options)[0, batch["input_ids"].shape[1] :]
        assert encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


def test_a_history_is_encoded_once_for_all_its_questions(tiny):
    ask = decoder(tiny)
    encoded = []
    encode, ask.features._encode = ask.features._encode, lambda new: encoded.append(len(new)) or encode(new)
    ask.answer(QUESTIONS, frames(4))
    assert encoded == [4]
    each = ask.counts.tokens_reused / (len(QUESTIONS) - 1)
    assert each > 4 * 4  # all frames' tokens, at least
    keys = [("walk", step) for step in range(4)]
    for _ in range(2):
        ask.answer(QUESTIONS[:1], frames(4), keys)
    assert encoded == [4, 4]


def test_no_question_no_answer(tiny):
    assert decoder(tiny).answer([], frames(1)) == []


def test_questions_and_actions_share_one_model(tiny, tmp_path):
    model, processor = tiny
    card = checkpoint.ModelCard(space=SPACE, num_actions=2)
    folder = checkpoint.save(tmp_path / "checkpoint", model, processor, card)
    text, actions = load_text_decoder(folder), load_decoder(folder)
    assert text.model is actions.model
    assert text.encoder.processor is not actions.encoder.processor  # each sets its own limits there
