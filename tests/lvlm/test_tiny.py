"""The tiny model is a stock Qwen2-VL that is made the same way every time."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import SIZES, SPECIAL_TOKENS, build_shape, build_tiny
from habitat_vlnr1.prompt import get_template

SPACE = ActionSpace()
TEXTS = ["Go to the red table and stop.", "Walk past the blue sofa, then stop at the green door."]


def test_same_arguments_same_weights():
    state = torch.random.get_rng_state()
    model, processor = build_tiny(TEXTS, space=SPACE)
    assert torch.equal(state, torch.random.get_rng_state())
    again, processor_again = build_tiny(reversed(TEXTS), space=SPACE)
    other, _ = build_tiny(TEXTS, space=SPACE, seed=1)
    assert processor.tokenizer.get_vocab() == processor_again.tokenizer.get_vocab()
    weights = [model.state_dict() for model in (model, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.parametrize(("size", "low", "high"), [("tiny", 0.7e6, 1e6), ("small", 3e6, 8e6)])
def test_sizes(size, low, high):
    model, processor = build_tiny(TEXTS, space=SPACE, size=size)
    assert isinstance(model, Qwen2VLForConditionalGeneration) and isinstance(processor, Qwen2VLProcessor)
    assert low < sum(weight.numel() for weight in model.parameters()) < high
    assert model.model.visual.config.depth == SIZES[size].vision_layers
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(0.08, rel=0.05)


def test_words_are_short_and_any_text_survives():
    _, processor = build_tiny(TEXTS, space=SPACE)
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("A. Move forward 25 cm, D. Stop") == ["A", ". Move forward 25 cm, ", "D", ". Stop"]
    assert len(tokenizer(TEXTS[1]).input_ids) == 13  # one per word, comma and period
    for text in (*TEXTS, "Überquere die Straße 🚪 15°\n", "A. Move forward 30 cm, B. Turn left 15 degrees"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(ids[0], ids[0] + len(SPECIAL_TOKENS)))  # in Qwen2-VL's order
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_a_frame_takes_nine_tokens_and_stock_generate_runs():
    model, processor = build_tiny(TEXTS, space=SPACE)
    messages = get_template("compact").messages(TEXTS[0], 1, 6, SPACE)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    frames = [np.zeros((84, 84, 3), np.uint8)] * 2
    batch = processor(text=[text], images=frames, return_tensors="pt")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 18
    out = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= batch["input_ids"].shape[1] + 3


def test_bad_arguments_say_what():
    with pytest.raises(ValueError, match="choose one of tiny, small"):
        build_tiny(TEXTS, space=SPACE, size="huge")
    with pytest.raises(ValueError, match="multiple of 28"):
        build_tiny(TEXTS, space=SPACE, image_size=100)


OUT = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
SHAPES = {
    "qwen2_vl": ({"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}, 14),
    "qwen2_5_vl": (OUT, 14),
    "qwen3_vl": (OUT | {"deepstack_visual_indexes": [0]}, 16),
}
"""Kind of model → its vision tower, and the side of a patch."""


def shape(kind, vocabulary=2048):
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": vocabulary}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return AutoConfig.for_model(kind, text_config=text, vision_config=SHAPES[kind][0])


@pytest.mark.parametrize("kind", SHAPES)
def test_a_given_shape_has_random_weights_and_answers(kind):
    config, side = shape(kind), 2 * SHAPES[kind][1]
    model, processor = build_shape(config, TEXTS, space=SPACE, image_size=2 * side, dtype="bfloat16")
    assert model.config.model_type == kind and model.dtype == torch.bfloat16
    assert model.get_input_embeddings().weight.shape == (2048, 64)  # the vocabulary is not the tokenizer's
    assert config.image_token_id != model.config.image_token_id  # what was given is left alone
    encoder = PromptEncoder(processor, get_template("compact"), 2, SPACE)
    prompt = Prompt(TEXTS[0], [np.zeros((side, side, 3), np.uint8)], ["black"])
    (answer,) = ActionDecoder(model, encoder).decode([prompt])
    assert len(answer.actions) == 2


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(VLNR1Error, match="a vocabulary of 100 is too small"):
        build_shape(shape("qwen2_vl", 100), TEXTS, space=SPACE, image_size=56)
