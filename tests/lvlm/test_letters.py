"""Letters are decided in float32, whatever the model computes in."""

import numpy as np
import pytest
import torch

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.lvlm import passes
from habitat_vlnr1.lvlm.checkpoint import ModelCard
from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt
from habitat_vlnr1.lvlm.inputs import PromptEncoder
from habitat_vlnr1.lvlm.letters import letter_logits, letters_alone
from habitat_vlnr1.lvlm.tiny import build_tiny

SPACE = ActionSpace(0.5, 30)


@pytest.fixture
def decoder():
    """Of a random bfloat16 model whose letters' logits are large and near each other."""
    torch.manual_seed(0)
    model, processor = build_tiny(["Go to the red sofa."], space=SPACE, image_size=56, seed=1)
    model = model.bfloat16().eval()
    model.set_output_embeddings(torch.nn.Linear(*model.get_output_embeddings().weight.T.shape, bias=False).bfloat16())
    made = ActionDecoder(
        model, PromptEncoder.from_card(processor, ModelCard(space=SPACE, template="compact")), stop_is_final=False
    )
    ids = list({token for choices in (made.grammar.first, *made.grammar.later) for token in choices})
    width = model.get_output_embeddings().weight.shape[1]
    with torch.no_grad():
        rows = 4 * torch.randn(width).sign() + torch.randn(len(ids), width) * 0.08
        model.get_output_embeddings().weight[ids] = rows.bfloat16()
    return made


@torch.no_grad()
def test_letters_that_tie_in_bfloat16_are_told_apart(decoder, monkeypatch):
    """The head's own logits tie at the top, where argmax takes STOP; the answers are those of exact logits."""
    torch.manual_seed(0)
    head, asked = decoder.model.get_output_embeddings(), []

    def spy(head, hidden, choices):
        asked.append((hidden, torch.tensor(choices)))
        return letter_logits(head, hidden, choices)

    monkeypatch.setattr(passes, "letter_logits", spy)
    chance = np.random.default_rng(0)
    prompts = [Prompt("Go.", [chance.integers(0, 256, (56, 56, 3), dtype=np.uint8)]) for _ in range(24)]
    answers = decoder.decode(prompts)
    tied = 0
    for step, (hidden, choices) in enumerate(asked):
        exact = (head.weight[choices].double() @ hidden.double()[:, :, None])[:, :, 0].argmax(1)
        assert [answer.actions[step] for answer in answers] == exact.tolist()
        rounded = head(hidden).gather(1, choices)
        tied += int(((rounded == rounded.max(1, keepdim=True).values).sum(1) > 1).sum())
    assert tied > 3


def test_training_scores_what_was_decided(decoder):
    """With autocast, too: the same float32 logits, and gradients to head and input."""
    head = decoder.model.get_output_embeddings()
    hidden = torch.randn(5, head.weight.shape[1], dtype=torch.bfloat16, requires_grad=True)
    ids = sorted(decoder.grammar.first)
    with torch.autocast("cpu", torch.bfloat16), letters_alone(head, ids) as columns:
        logits = head(hidden)[:, columns]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, letter_logits(head, hidden, [ids] * 5), atol=1e-5, rtol=1e-5)
    logits.sum().backward()
    assert hidden.grad.abs().sum() > 0 and set(head.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()) == set(ids)
    assert head(hidden).shape[1] == len(head.weight)  # the head is as before
