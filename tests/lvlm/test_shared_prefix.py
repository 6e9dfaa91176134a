"""A common beginning that is run once changes nothing: hidden states, losses and gradients are those of whole rows."""

import numpy as np
import pytest
import torch

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm.inputs import IGNORED, PromptEncoder, SFTCollator, answer_loss
from habitat_vlnr1.lvlm.query import common_beginning, trunk_of
from habitat_vlnr1.lvlm.shared_prefix import parts_of, share_prefixes
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode, Records

SPACE = ActionSpace()
WORDS = ["Go to the red table and stop.", "Walk past the blue sofa, then turn left."]
FRAMES = [np.random.default_rng(i).integers(0, 256, (84, 84, 3), dtype=np.uint8) for i in range(16)]
MEMORIES = {
    "first_and_last": {"strategy": "long_short", "budget": 2, "short_window": 1, "long_stride": 6},
    "long_short": {"strategy": "long_short", "budget": 5, "short_window": 3, "long_stride": 4},
    "uniform": {"strategy": "uniform", "budget": 4},
    "current": {"strategy": "current"},
}


@pytest.fixture(scope="module")
def made():
    model, processor = build_tiny(WORDS, space=SPACE)
    share_prefixes(model)
    return model, processor


def walk(encoder, memory, instruction, episode, steps):
    """Queries of some steps of an episode."""
    shown = [[*memory.select(step), step] for step in steps]
    return [encoder.query(instruction, [FRAMES[i] for i in s], [(episode, i) for i in s]) for s in shown]


def gradients(model, batch):
    model.zero_grad()
    loss = answer_loss(model, batch)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("template", ["compact", "vln_ego"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_loss_and_gradients_are_those_of_whole_rows(made, template, memory):
    model, processor = made
    encoder = PromptEncoder(processor, get_template(template), 6, SPACE, single_slot=True)
    memory = make_memory(**MEMORIES[memory])
    queries = [
        *walk(encoder, memory, WORDS[0], 0, [0, 1, 2, 7]),
        *walk(encoder, memory, WORDS[1], 1, [3, 11, 12]),
        *walk(encoder, memory, WORDS[0], 2, [5]),
    ]
    groups = [0, 0, 0, 0, 1, 1, 1, 2]
    chance = np.random.default_rng(0)
    answers = [encoder.answer_ids(chance.integers(0, 4, 6).tolist()) for _ in queries]
    whole, wanted = gradients(model, encoder.training_batch(queries, answers))
    batch = encoder.training_batch(queries, answers, groups)
    shared, got = gradients(model, batch)
    torch.testing.assert_close(shared, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(model(**batch).loss.detach(), whole, atol=1e-6, rtol=1e-5)
    assert (batch["labels"] != IGNORED).sum() == sum(map(len, answers))
    assert batch["input_ids"].shape[1] < max(len(q.ids) for q in queries) + len(answers[0])


def test_prompts_that_begin_with_one_another_share_the_longest(made):
    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, single_slot=True)
    queries = walk(encoder, make_memory("uniform", budget=8), WORDS[0], 0, [1, 3, 5])  # all frames so far
    other = encoder.query(WORDS[0], FRAMES[8:10], [(0, 8), (0, 9)])
    trunk, shared = trunk_of([*queries, other])
    assert (trunk, [images for _, images in shared]) == (1, [2, 4, 4, 0])  # the third is no better
    answers = [encoder.answer_ids([1] * 6)] * 3
    batch = encoder.training_batch(queries, answers, [0, 0, 0])
    assert batch["prefix_lengths"].tolist() == [tokens for tokens, _ in trunk_of(queries)[1]]
    assert batch["prefix_input_ids"].shape[1] == max(batch["prefix_lengths"])
    assert len(batch["image_grid_thw"]) == len(batch["image_index"]) == 6  # no frame is in two rows


def test_rows_run_beside_their_like():
    assert parts_of(torch.tensor([10, 31, 20, 30, 9, 21])) == [[1, 3, 5], [2], [0, 4]]
    assert parts_of(torch.tensor([7, 7, 7])) == [[0, 1, 2]]


def test_answers_of_one_prompt_share_all_but_its_last_token(made):
    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, single_slot=True)
    query = encoder.query(WORDS[0], FRAMES[:3], [(0, i) for i in range(3)])
    batch = encoder.training_batch([query] * 4, [encoder.answer_ids([1] * 6)] * 4, [7] * 4)
    assert batch["prefix_input_ids"].shape == (1, len(query.ids) - 1)
    assert batch["input_ids"].shape == (4, 1 + len(encoder.answer_ids([1] * 6)))
    assert len(batch["image_grid_thw"]) == 3


def test_the_common_beginning_never_cuts_an_image_nor_confuses_two(made):
    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, single_slot=True)
    a = encoder.query(WORDS[0], [FRAMES[0], FRAMES[1]], [("a", 0), ("a", 1)])
    b = encoder.query(WORDS[0], [FRAMES[0], FRAMES[2]], [("a", 0), ("a", 2)])  # equal tokens, another second image
    c = encoder.query(WORDS[1], [FRAMES[0], FRAMES[1]], [("a", 0), ("a", 1)])
    assert common_beginning([a]) == (len(a.ids) - 1, 2)
    assert common_beginning([a, b]) == (a.spans[1][0], 1)
    tokens, images = common_beginning([a, c])
    assert images == 0 and 0 < tokens < a.spans[0][0]


def test_gradient_checkpointing_is_refused_clearly(made):
    _, processor = made
    model, _ = build_tiny(WORDS, space=SPACE)
    share_prefixes(model)
    model.activation_checkpointing_enable()
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, single_slot=True)
    query = encoder.query(WORDS[0], FRAMES[:2], [(0, 0), (0, 1)])
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model.train()(**encoder.training_batch([query] * 2, [encoder.answer_ids([1] * 6)] * 2, [0, 0]))


def test_records_are_grouped_by_episode_and_the_collator_keeps_the_groups(made):
    class Ego:
        root, meta = None, {}
        episodes = tuple(Episode(str(n), "s", WORDS[n], (1,) * length + (0,)) for n, length in enumerate([6, 3]))

    records = Records([Ego()], make_memory("current"), 6)
    assert records.rows(3) == [[0, 3, 6], [1, 4], [2, 5], [7, 9], [8, 10]]
    assert records.rows(99, lambda episode, step: step < 2) == [[0, 1], [7, 8]]
    with pytest.raises(ValueError, match="at least 1"):
        records.rows(0)

    class Example:
        instruction, answer = WORDS[0], (1,) * 6
        frames = FRAMES[:1]

    _, processor = made
    encoder = PromptEncoder(processor, get_template("compact"), 6, SPACE, single_slot=True)
    collate = SFTCollator(encoder, lambda index: Example())
    assert collate([{"index": [0, 3, 6]}, {"index": [7]}])["prefix_rows"].tolist() == [0, 0, 0, 1]
    assert "prefix_rows" not in collate([{"index": [0]}, {"index": [7]}])
