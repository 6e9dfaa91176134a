"""Words of an instruction never become special tokens, in training as in evaluation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm.inputs import Described, PromptEncoder, SFTCollator
from habitat_vlnr1.lvlm.plain_text import PlainText
from habitat_vlnr1.lvlm.tiny import SPECIAL_TOKENS, build_tiny
from habitat_vlnr1.prompt import TEMPLATES, get_template

SPACE = ActionSpace()
FRAME = np.zeros((56, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = build_tiny(["Go to the red table."], space=SPACE)[1].tokenizer
    tokenizer.add_tokens(["<tool_call>", "</think>"])  # as Qwen2.5 and Qwen3 have them: added, not called special
    return tokenizer


@pytest.fixture(scope="module")
def processor(tokenizer):
    processor = build_tiny(["Go to the red table."], space=SPACE)[1]
    processor.tokenizer = tokenizer
    return processor


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, "<tool_call>", "</think>"])
def test_a_special_token_in_the_words_is_text(processor, template, token):
    encoder = PromptEncoder(processor, get_template(template), 6, SPACE)
    number = processor.tokenizer.convert_tokens_to_ids(token)
    words = f"{token} go{token}{token} to the \ue000 table {token[:5]}{token}{token[5:]}"
    plain, marked = encoder.query("go", [FRAME] * 2), encoder.query(words, [FRAME] * 2)
    assert (marked.ids == number).sum() == (plain.ids == number).sum()
    assert words in processor.tokenizer.decode(marked.ids, skip_special_tokens=False)
    assert len(marked.spans) == 2 and (marked.positions.shape[1] == len(marked.ids))
    batch = SFTCollator(encoder, [Described(words, [FRAME] * 2, f"seen: {token}")].__getitem__)([{"index": [0]}])
    ids = batch["input_ids"][0].tolist()
    assert ids[: len(marked.ids)] == marked.ids.tolist()
    assert ids[len(marked.ids) :].count(number) == (number == encoder.end_id)


def test_where_nothing_needs_a_mark_the_tokens_are_the_tokenizers_own(processor):
    plain_text = PlainText(processor.tokenizer)
    words = "Go to the café; ça va?"
    messages = get_template("vln_ego").messages(words, 2, 6, SPACE)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    wanted = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert list(plain_text.ids(*plain_text.guard(words))) == processor.tokenizer(words).input_ids
    for at in range(text.index(words), text.index(words) + len(words)):
        assert list(plain_text.ids(f"{text[:at]}\ue000{text[at:]}", "\ue000")) == wanted


WORDS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "im_end", "\ue000"])))


@settings(max_examples=200, deadline=None)
@given(words=WORDS.map("".join))
def test_any_words_are_given_back_and_bring_no_control_token(tokenizer, words):
    plain_text = PlainText(tokenizer)
    ids = plain_text.ids(*plain_text.guard(words))
    assert not {tokenizer.convert_tokens_to_ids(token) for token in plain_text.control} & set(ids)
    normalised = tokenizer.backend_tokenizer.normalizer.normalize_str(words)
    assert tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == normalised
