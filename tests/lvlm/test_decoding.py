"""Constrained decoding equals greedy `generate` under the same grammar, whatever stands beside a row in its batch."""

import copy
import itertools

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.lvlm.checkpoint import CARD_FILE, CheckpointError, ModelCard, save
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt, load_decoder
from habitat_vlnr1.lvlm.grammar import GrammarError, read_grammar
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.prompt import get_template

MADE_FOR = ActionSpace(turn_angle=30)
# Under other angles no phrase is one token and later letters are ` B` behind a comma, as with Qwen's own tokenizer.
SPACES = {"one token a phrase": MADE_FOR, "many tokens a phrase": ActionSpace(0.3, 15)}
N = 3


@pytest.fixture(scope="module")
def made():
    # Large weights, so that untrained answers differ between prompts.
    return build_tiny(["go to the red table and stop"] * 2, space=MADE_FOR, initializer_range=0.3, seed=3)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (84, 84, 3), dtype=np.uint8) for _ in range(12)]
    return [
        Prompt("go to the red table and stop", frames[:1], [(1, 0)]),
        Prompt("stop", frames[1:4], [(2, 0), (2, 1), (2, 2)]),
        Prompt("go to the table, then to the red one, and then stop", frames[4:6], [(3, 0), (3, 1)]),
        Prompt("go", [frames[4], frames[7]], [(3, 0), (4, 1)]),
        Prompt("the red table", frames[8:12], None),
    ]


def encoder_for(made, space=MADE_FOR, num_actions=N):
    return PromptEncoder(made[1], get_template("compact"), num_actions, space)


class Grammar(LogitsProcessor):
    """All answers as a table of beginnings: the plain way to say the same."""

    def __init__(self, encoder, start, stop_is_final):
        self.start = start
        self.allowed = {}
        for answer in itertools.product(Action, repeat=N):
            if stop_is_final and any(a == 0 and b != 0 for a, b in itertools.pairwise(answer)):
                continue
            ids = encoder.answer_ids(answer)
            for i in range(len(ids)):
                self.allowed.setdefault(ids[:i], set()).add(ids[i])

    def __call__(self, input_ids, scores):
        masked = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids[:, self.start :].tolist()):
            for token in self.allowed.get(tuple(ids), {0}):
                masked[row, token] = scores[row, token]
        return masked


def stock_answer(made, encoder, prompt, stop_is_final):
    query = encoder.query(prompt.instruction, prompt.frames)
    batch = encoder.prompts([query], single_slot=False)
    start = batch["input_ids"].shape[1]
    processors = LogitsProcessorList([Grammar(encoder, start, stop_is_final)])
    with torch.inference_mode():
        out = made[0].generate(
            **batch, max_new_tokens=200, do_sample=False, logits_processor=processors, eos_token_id=encoder.end_id
        )
    return encoder.tokenizer.decode(out[0, start:]).removesuffix("<|im_end|>")


@pytest.mark.parametrize("stop_is_final", [True, False])
@pytest.mark.parametrize("name", SPACES)
def test_equals_stock_generate(made, prompts, name, stop_is_final):
    encoder = encoder_for(made, SPACES[name])
    wanted = [stock_answer(made, encoder, prompt, stop_is_final) for prompt in prompts]
    decoder = ActionDecoder(made[0], encoder, stop_is_final=stop_is_final)
    answers = decoder.decode(prompts)
    assert [answer.text for answer in answers] == wanted
    assert len(set(wanted)) > 2
    alone = [ActionDecoder(made[0], encoder, stop_is_final=stop_is_final).decode([p])[0] for p in prompts]
    again = decoder.decode(prompts)  # now with every frame's features kept
    for answer, other, third in zip(answers, alone, again, strict=True):
        assert answer.actions == other.actions == third.actions
        assert SPACES[name].parse(answer.text, N) == answer.actions
        np.testing.assert_allclose(answer.log_probs, other.log_probs, atol=1e-4)
        np.testing.assert_allclose(answer.log_probs, third.log_probs, atol=1e-4)
        assert answer.ids == encoder.answer_ids(answer.actions)


def test_log_probs_are_those_of_the_full_sequence(made, prompts):
    encoder = encoder_for(made, SPACES["many tokens a phrase"])
    decoder = ActionDecoder(made[0], encoder, stop_is_final=False, temperature=1.0)
    grammar = read_grammar(encoder.tokenizer, encoder.space, N, encoder.end_id)
    for prompt, answer in zip(prompts, decoder.decode(prompts), strict=True):
        query = encoder.query(prompt.instruction, prompt.frames)
        batch = encoder.training_batch([query], [answer.ids])
        with torch.inference_mode():
            logits = made[0](**batch).logits[0, len(query.ids) - 1 : -1]
        previous, wanted = None, []
        for action, row in zip(answer.actions, logits[list(answer.decided)], strict=True):
            choices = grammar.choices(previous)
            wanted.append(torch.log_softmax(row[list(choices)], 0)[action].item())
            previous = action
        np.testing.assert_allclose(answer.log_probs, wanted, atol=1e-4)


def test_after_stop_only_stop(made, prompts):
    decoder = ActionDecoder(made[0], encoder_for(made, num_actions=6), temperature=5.0)
    answers = decoder.decode(prompts, samples=8)
    stops = [answer for answer in answers if Action.STOP in answer.actions[:-1]]
    assert len(answers) == 40 and stops
    for answer in stops:
        first = answer.actions.index(Action.STOP)
        assert set(answer.actions[first:]) == {Action.STOP}
        assert answer.log_probs[first] < 0 and set(answer.log_probs[first + 1 :]) <= {0.0}
        assert sum(answer.decided) == first + 1


def test_sampling_follows_the_probabilities_and_the_seed(made, prompts):
    encoder = encoder_for(made, num_actions=1)
    greedy = ActionDecoder(made[0], encoder).decode(prompts[:1])[0]
    decoder = ActionDecoder(made[0], encoder, temperature=1.0, seed=1)
    answers = decoder.decode(prompts[:1], samples=400)
    share = np.mean([answer.actions == greedy.actions for answer in answers])
    assert share == pytest.approx(np.exp(greedy.log_probs[0]), abs=0.1)
    again = ActionDecoder(made[0], encoder, temperature=1.0, seed=1).decode(prompts[:1], samples=400)
    assert [a.actions for a in again] == [a.actions for a in answers]


def test_batches_larger_than_the_limit_are_split(made, prompts):
    encoder = encoder_for(made)
    split = ActionDecoder(made[0], encoder, batch_size=2).decode(prompts)
    assert [a.actions for a in split] == [a.actions for a in ActionDecoder(made[0], encoder).decode(prompts)]


def test_a_frame_is_encoded_once_and_memory_is_bounded(made, prompts, monkeypatch):
    encoder = encoder_for(made)
    one = 9 * 128 * 4
    decoder = ActionDecoder(made[0], encoder, feature_cache_mb=4.5 * one / 2**20)
    encoded = []
    encode = decoder._features._encode
    monkeypatch.setattr(decoder._features, "_encode", lambda frames: encoded.append(len(frames)) or encode(frames))
    decoder.decode([prompts[1]])
    decoder.decode([prompts[1]])
    assert encoded == [3]
    decoder.decode([prompts[2], prompts[3]])  # they share a frame
    assert encoded == [3, 3] and len(decoder._features._kept) == 4
    decoder.forget()
    decoder.decode([prompts[1]])
    assert encoded == [3, 3, 3]


def test_free_decoding_reads_what_it_can(made, prompts):
    encoder = encoder_for(made)
    strict = ActionDecoder(made[0], encoder, constrained=False, lenient=False)
    answers = strict.decode(prompts[:2])
    assert all(answer.actions == (Action.STOP,) and not answer.valid for answer in answers)  # an untrained model
    good = strict._read(list(encoder.answer_ids([1, 2, 0])))
    assert good.valid and good.actions == (Action.FORWARD, Action.LEFT, Action.STOP)
    foreign = list(encoder.answer_ids("A. walk on, C. turn right by 15"))
    assert strict._read(foreign).actions == (Action.STOP,)
    lenient = ActionDecoder(made[0], encoder, constrained=False)._read(foreign)
    assert lenient.actions == (Action.FORWARD, Action.RIGHT, Action.STOP) and not lenient.valid


def test_free_decoding_equals_constrained_where_the_model_keeps_to_the_grammar(prompts):
    """A model that was trained on one answer gives it either way."""
    from habitat_vlnr1.lvlm.inputs import answer_loss

    model, processor = build_tiny(["go to the red table and stop"] * 2, space=MADE_FOR)
    encoder = encoder_for((model, processor))
    query = encoder.query(prompts[0].instruction, prompts[0].frames)
    batch = encoder.training_batch([query], [encoder.answer_ids([2, 1, 0])])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        answer_loss(model, batch).backward()
        optimizer.step()
    for constrained in (True, False):
        (answer,) = ActionDecoder(model, encoder, constrained=constrained).decode(prompts[:1])
        assert answer.actions == (Action.LEFT, Action.FORWARD, Action.STOP) and answer.valid


def test_tokenizers_that_hide_the_letters_are_refused():
    class Words:
        def __call__(self, text, add_special_tokens):
            ids = [sum(map(ord, part)) for part in text.split(", ")]
            return type("Encoding", (), {"input_ids": [7, 7, *ids] if len(ids) == 1 else ids})

    with pytest.raises(GrammarError, match="use free decoding"):
        read_grammar(Words(), MADE_FOR, 3, end_id=0)


def test_a_loaded_decoder_asks_as_its_checkpoints_card_says(made, prompts, tmp_path):
    card = ModelCard(space=MADE_FOR, num_actions=N, template="compact", max_pixels=56**2)
    folder = save(tmp_path / "checkpoint", *made, card)
    decoder = load_decoder(folder)
    processor = copy.deepcopy(made[1])  # the encoder limits its pixels
    encoder = PromptEncoder(processor, get_template("compact"), N, MADE_FOR, max_pixels=56**2)
    wanted = ActionDecoder(made[0], encoder, drafts=[(Action.FORWARD,) * N])
    assert decoder.decode(prompts[:2]) == wanted.decode(prompts[:2])
    other = load_decoder(folder, ModelCard(space=SPACES["many tokens a phrase"], num_actions=2), temperature=1.0)
    assert (other.num_actions, other.encoder.template.name, other.temperature) == (2, "vln_ego", 1.0)
    assert other.encoder.space.forward_step == 0.3
    (folder / CARD_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"no vlnr1\.json says how this model is asked: give a ModelCard"):
        load_decoder(folder)
    with pytest.raises(CheckpointError, match="no such checkpoint folder; train it first"):
        load_decoder(tmp_path / "gone")
