"""Qwen2.5-VL and Qwen3-VL go the same way as Qwen2-VL: inputs, speed-ups and decoding are exact for them too."""

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.inputs import PromptEncoder, answer_loss
from habitat_vlnr1.lvlm.shared_prefix import share_prefixes
from habitat_vlnr1.lvlm.tiny import build_processor, build_tokenizer
from habitat_vlnr1.prompt import get_template

SPACE = ActionSpace()
CLASSES = {
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


def build(kind):
    tokenizer = build_tokenizer(["go to the red table and stop"], SPACE)
    side = 16 if kind == "qwen3_vl" else 14
    processor = build_processor(tokenizer, 84)
    processor.image_processor.patch_size = side
    processor.image_processor.size = {"shortest_edge": (2 * side) ** 2, "longest_edge": (6 * side) ** 2}
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
    vision |= {"patch_size": side, "initializer_range": 0.3}
    if kind == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    else:
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    config_class, model_class = CLASSES[kind]
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return model_class(config).eval(), processor


@pytest.mark.parametrize("kind", CLASSES)
def test_sister_models(kind, tmp_path):
    model, processor = build(kind)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (90, 100, 3), dtype=np.uint8) for _ in range(4)]
    encoder = PromptEncoder(processor, get_template("compact"), 3, SPACE)
    prompts = [Prompt("go", frames[:1], ["a"]), Prompt("go to the red table", frames[:3], ["a", "b", "c"])]
    queries = [encoder.query(prompt.instruction, prompt.frames, prompt.keys) for prompt in prompts]
    answers = [encoder.answer_ids([1, 2, 3])] * 2
    batch = encoder.training_batch(queries, answers)
    own = dict(batch)
    del own["position_ids"]
    with torch.no_grad():
        stock = model(**own)
        torch.testing.assert_close(model(**batch).loss, stock.loss)

    share_prefixes(model)
    encoder.single_slot = True
    with torch.no_grad():
        shared = model(**encoder.training_batch(queries, answers, groups=[0, 0]))
        torch.testing.assert_close(shared.loss, stock.loss, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(answer_loss(model, batch), stock.loss)

    checkpoint.save(tmp_path / "model", model, processor, checkpoint.ModelCard())
    again, processor = checkpoint.load(tmp_path / "model")
    decoder = ActionDecoder(again, PromptEncoder(processor, get_template("compact"), 3, SPACE), stop_is_final=False)
    for prompt, query, answer in zip(prompts, queries, decoder.decode(prompts), strict=True):
        full = encoder.training_batch([query], [answer.ids])
        with torch.no_grad():
            logits = again(**full).logits[0, len(query.ids) - 1 : -1]
        four = logits[list(answer.decided)][:, list(decoder.grammar.first)]
        wanted = torch.log_softmax(four, -1)[range(3), list(answer.actions)]
        np.testing.assert_allclose(answer.log_probs, wanted, atol=1e-4)
        assert four.argmax(-1).tolist() == list(answer.actions), prompt.instruction


@pytest.mark.parametrize("kind", CLASSES)
def test_sister_models_are_fine_tuned(kind, tmp_path):
    """TRL's SFTTrainer as stage 1 uses it learns, and its checkpoint comes back with the weights that it had."""
    import trl
    from datasets import Dataset

    from habitat_vlnr1.lvlm.inputs import Described, SFTCollator
    from habitat_vlnr1.trainers.fitting import CardCallback
    from habitat_vlnr1.trainers.sft_fit import AnswerTrainer

    model, processor = build(kind)
    share_prefixes(model)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (90, 100, 3), dtype=np.uint8) for _ in range(3)]
    examples = [
        Described("go", frames[:2], SPACE.format([1, 2, 3])),
        Described("stop", frames, SPACE.format([3, 0, 0])),
    ]
    encoder = PromptEncoder(processor, get_template("compact"), 3, SPACE, single_slot=True)
    trainer = AnswerTrainer(
        model=model.train(),
        args=trl.SFTConfig(
            output_dir=str(tmp_path), max_steps=20, save_steps=20, learning_rate=2e-3, per_device_train_batch_size=2,
            logging_steps=1, use_cpu=True, bf16=False, report_to=[], max_length=None, remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True}, lr_scheduler_type="constant",
        ),
        data_collator=SFTCollator(encoder, examples.__getitem__),
        train_dataset=Dataset.from_dict({"index": [[0], [1]]}),
        processing_class=processor,
        callbacks=[CardCallback(checkpoint.ModelCard())],
    )  # fmt: skip
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    again, _ = checkpoint.load(checkpoint.newest_checkpoint(tmp_path))
    assert type(again) is CLASSES[kind][1]
    trained = model.state_dict()
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, trained[name]), name
