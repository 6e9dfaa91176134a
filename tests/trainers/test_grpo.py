"""GRPO on VLN-Ego records: eqs. 3–5 and 9 by hand, and our fast path against TRL's plain one."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from habitat_baselines.config.default import get_config
from omegaconf import OmegaConf
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.config import reward_functions, rft_arguments
from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.inputs import IGNORED
from habitat_vlnr1.lvlm.tiny import build_tiny
from habitat_vlnr1.records import Episode, EpisodeWriter, RecordError, keep_some
from habitat_vlnr1.rewards import make_reward
from habitat_vlnr1.trainers.fitting import check_start, open_records
from habitat_vlnr1.trainers.rft_fit import (
    Recorded,
    draw_curves,
    draw_records,
    make_trainer,
)
from tests.paths import CONFIGS

SPACE = ActionSpace(0.5, 30)
WORDS = ["Stop at the red sofa.", "Go through the door on your left and stop at the blue bed."]
BETA, GAMMA = 0.3, 0.5


def jpeg(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two exported sources of a few random frames, and a random tiny model as the SFT checkpoint."""
    home = tmp_path_factory.mktemp("grpo")
    for source, split in (("embedded", "train"), ("embedded", "val_unseen"), ("other", "train")):
        writer = EpisodeWriter(home / "ego" / source / split, {})
        for number, length in enumerate([7, 4]):
            actions = (*(1 + (number + i) % 3 for i in range(length)), 0)
            jpegs = [jpeg((number, i)) for i in range(length + 1)]
            writer.write(Episode(f"{number}", "s", WORDS[number], actions), jpegs)
        writer.close()
    model, processor = build_tiny(WORDS, space=SPACE, image_size=56, seed=1)
    memory = {"strategy": "long_short", "budget": 2, "short_window": 1, "short_stride": 1, "long_stride": 6}
    card = checkpoint.ModelCard(space=SPACE, num_actions=6, template="compact", memory=memory)
    checkpoint.save(home / "run/checkpoints/checkpoint-7", model, processor, card)
    return home


@pytest.fixture
def configured(home, monkeypatch):
    monkeypatch.chdir(home)

    def make(*overrides):
        return get_config(
            "vlnr1_rft.yaml",
            [
                "vlnr1.data.root=ego",
                "vlnr1.run_dir=run",
                "vlnr1.model.image_size=56",
                "vlnr1.rft.per_device_train_batch_size=8",
                "vlnr1.rft.num_generations=4",
                f"vlnr1.rft.beta={BETA}",
                f"vlnr1.rft.rewards=[{{name: time_decayed, weight: 1.0, gamma: {GAMMA}}}]",
                *overrides,
            ],
            CONFIGS,
        )

    return make


def trainer_of(config, numbers=(2, 9), last=None):
    records = open_records(config, [("embedded", "train"), ("embedded", "val_unseen")])
    return make_trainer(config, check_start(config), last, Recorded(records, list(numbers), [13]))


def rows(trainer, count=4):
    """What TRL's data loader gives: each row `count` times."""
    return [dict(row) for row in trainer.train_dataset for _ in range(count)]


def nudge(model):
    """Move the policy away from the reference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)


def answers_of(inputs):
    """Token ids of the completions, without padding."""
    ids, masks = inputs["completion_ids"], inputs["completion_mask"].bool()
    return [row[mask].tolist() for row, mask in zip(ids, masks, strict=True)]


def by_hand(model, trainer, record, ids):
    """Log-probabilities of an answer's tokens, from a plain forward over the whole row."""
    query = trainer._query(record)
    batch = trainer.encoder.training_batch([query], [tuple(ids)])
    answered = batch["labels"][0] != IGNORED
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0, :-1]
    return torch.log_softmax(logits, -1)[answered[1:]].gather(1, torch.tensor(ids)[:, None])[:, 0]


def test_advantages_kl_and_loss_are_those_of_the_equations(configured):
    trainer = trainer_of(configured())
    trainer.model.train()
    nudge(trainer.model)
    inputs = trainer._generate_and_score_completions(rows(trainer))
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, inputs)

    answers = answers_of(inputs)
    total = 0.0
    for start, record in ((0, 2), (4, 9)):
        recorded = trainer.records[record].answer
        group = answers[start : start + 4]
        earned = []
        for ids in group:  # eq. 9
            said = SPACE.parse(trainer.processing_class.tokenizer.decode(ids, skip_special_tokens=True), 6)
            earned.append(sum(GAMMA**k for k in range(6) if said[k] == recorded[k]))
        assert len(set(earned)) > 1
        advantages = (np.array(earned) - np.mean(earned)) / (np.std(earned, ddof=1) + 1e-4)  # eq. 3
        np.testing.assert_allclose(inputs["advantages"][start : start + 4], advantages, atol=1e-5)
        for ids, advantage in zip(group, advantages, strict=True):
            policy = by_hand(trainer.model, trainer, record, ids)
            with torch.no_grad():
                reference = by_hand(trainer.ref_model, trainer, record, ids)
            log_ratio = reference - policy
            divergence = log_ratio.exp() - log_ratio - 1  # eq. 5
            assert divergence.mean() > 1e-4
            total = total + (-(policy - policy.detach()).exp() * advantage + BETA * divergence).mean()  # eq. 4
    torch.testing.assert_close(loss, total / 8, atol=1e-5, rtol=1e-4)
    kl = trainer._metrics["train"]["kl"][-1]
    gradients = torch.autograd.grad(loss, list(trainer.model.parameters()), retain_graph=True)
    wanted = torch.autograd.grad(total / 8, list(trainer.model.parameters()))
    torch.testing.assert_close(gradients, wanted, atol=2e-5, rtol=2e-3)
    assert kl > 1e-4


@pytest.mark.parametrize("iterations", [1, 2])
def test_loss_and_gradient_are_those_of_plain_trl_on_the_same_answers(configured, iterations):
    settings = f"vlnr1.rft.num_iterations={iterations}"
    fast = trainer_of(configured(settings))
    plain = trainer_of(configured(settings, "vlnr1.rft.rollout=trl"))
    results, inputs = [], {}
    for trainer in (fast, plain):
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        nudge(trainer.model)
        if trainer is plain:
            plain._generate_single_turn = partial(lambda answers, *args, **kwargs: (answers, None), answers_of(inputs))
        inputs = trainer._generate_and_score_completions(rows(trainer))
        if iterations == 2:  # the second update on the same answers: the ratio is no longer 1, and is clipped
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    parameter.mul_(1.02)
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        gradient = [parameter.grad.clone() for parameter in trainer.model.parameters()]
        results.append((loss.detach(), trainer._metrics["train"]["kl"][-1], gradient, trainer._metrics["train"]))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)
    torch.testing.assert_close(results[0][2], results[1][2], atol=5e-5, rtol=5e-3)
    for name in ("reward", "entropy", "answers/valid", "answers/accuracy_1", "clip_ratio/region_mean"):
        assert results[0][3][name][-1] == pytest.approx(results[1][3][name][-1], abs=1e-4)
    assert (results[0][3]["clip_ratio/region_mean"][-1] > 0) == (iterations == 2)


def test_letters_alone_can_be_trained(configured):
    trainer = trainer_of(configured("vlnr1.rft.train_forced=false"))
    trainer.model.train()
    inputs = trainer._generate_and_score_completions(rows(trainer))
    letters = {trainer.processing_class.tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"}
    for ids, mask in zip(inputs["completion_ids"].tolist(), inputs["tool_mask"].tolist(), strict=True):
        chosen = [token for token, trained in zip(ids, mask, strict=True) if trained]
        assert chosen and set(chosen) <= letters


def test_letters_are_scored_among_the_four_that_they_are_drawn_among(configured):
    """The decoder's own log-probabilities, and nothing to gain from tokens that are never drawn."""
    trainer = trainer_of(configured("vlnr1.rft.train_forced=false"))
    nudge(trainer.model)
    trainer._rows = [2] * 4 + [9] * 4
    answers = trainer.decoder.decode([trainer._prompt(number) for number in (2, 9)], 4)
    logits = []
    head = trainer.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: logits.append(output) or output.retain_grad())
    scores = trainer._score(
        trainer.model, [(row, answer.ids) for row, answer in zip(trainer._rows, answers, strict=True)]
    )
    for (log_probs, entropy), answer in zip(scores, answers, strict=True):
        letters = torch.tensor(answer.decided)
        drawn = torch.tensor(answer.log_probs[: int(letters.sum())])
        torch.testing.assert_close(log_probs[letters], drawn, atol=1e-4, rtol=1e-4)
        assert ((entropy[letters] > 0) & (entropy[letters] <= np.log(4) + 1e-5)).all()
        places = [place for place, _ in trainer.decoder.grammar.decisions(answer.ids)]
        assert np.flatnonzero(trainer.decoder.grammar.tokens(answer.actions)[1]).tolist() == places
        assert (np.delete(log_probs.detach().numpy(), places) == 0).all()
    torch.cat([log_probs for log_probs, _ in scores]).sum().backward()
    (moved,) = logits
    four = [trainer.processing_class.tokenizer.convert_tokens_to_ids(letter) for letter in "ABCD"]
    others = [token for token in range(moved.shape[-1]) if token not in four]
    assert moved.grad[..., four].abs().sum() > 0 and moved.grad[..., others].abs().sum() == 0


def test_rollouts_depend_on_seed_step_and_rows_alone(configured):
    answers = []
    for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        trainer = trainer_of(configured(f"habitat.seed={seed}"))
        trainer.state.global_step = step
        trainer._rows = [2] * 4 + [9] * 4
        torch.manual_seed(step + 17)  # whatever else has been drawn meanwhile
        answers.append(trainer.roll_out()["completion_ids"])
    assert answers[0] == answers[1]
    assert answers[0] != answers[2] and answers[0] != answers[3]


def test_the_likeliest_answers_are_rewarded_apart(configured):
    trainer = trainer_of(configured())
    trainer.model.eval()
    trainer._generate_and_score_completions(rows(trainer))
    likeliest = trainer.decoder.decode([trainer._prompt(number) for number in (2, 9)], greedy=True)
    recorded = [trainer.records[number].answer for number in (2, 9)]
    wanted = make_reward("time_decayed", gamma=GAMMA)([answer.text for answer in likeliest], actions=recorded)
    assert trainer._metrics["eval"]["greedy_reward"] == [pytest.approx(sum(wanted) / 2)]


def test_rewards_are_combined_by_weight(configured):
    config = configured(
        "vlnr1.rft.rewards=[{name: uniform, weight: 0.5}, {name: hard, weight: 2}, "
        "{name: tests.trainers.test_grpo.zero, weight: 1}]"
    )
    functions = reward_functions(config)
    assert [function.__name__ for function in functions] == ["uniform", "hard", "zero"]
    assert rft_arguments(config).reward_weights == [0.5, 2.0, 1.0]
    answer = SPACE.format([1, 1, 0])
    assert [function([answer], actions=[[1, 1, 0]]) for function in functions] == [[3.0], [1.0], [0.0]]


def zero(completions, **columns):
    return [0.0] * len(completions)


def test_records_are_drawn_per_source(configured):
    config = configured("+vlnr1.data.rft_records.other=3", "vlnr1.data.rft_records.embedded=5")
    records = open_records(config, [("embedded", "train"), ("other", "train")])
    assert records.spans() == [range(13), range(13, 26)]
    assert records[13].frames[0].parts[1] == "other" and records[12].frames[0].parts[1] == "embedded"
    drawn = draw_records(records, list(config.vlnr1.data.rft_records.items()), 1.0, seed=3)
    assert [len(set(part)) for part in drawn] == [5, 3]
    assert all(number in span for part, span in zip(drawn, records.spans(), strict=True) for number in part)
    assert drawn == draw_records(records, list(config.vlnr1.data.rft_records.items()), 1.0, seed=3)
    assert [len(part) for part in draw_records(records, [("embedded", -1), ("other", 1)], 1.0, seed=3)] == [13, 1]
    with pytest.raises(RecordError, match="14 records of other are asked for, but there are 13"):
        draw_records(records, [("embedded", 1), ("other", 14)], 1.0, seed=0)


def test_straight_records_can_be_thinned_out():
    episode = Episode("1", "s", "go", (*[1] * 8, 0))
    keep = keep_some(3, 0.0, seed=0)
    assert [step for step in range(9) if keep(episode, step)] == [6, 7, 8]
    keep = keep_some(3, 0.5, seed=0)
    assert 350 < sum(keep(episode, 2) for _ in range(800)) < 450


@pytest.mark.parametrize(
    ("override", "check", "message"),
    [
        ("vlnr1.rft.num_generations=3", rft_arguments, "vlnr1.rft: .*must be divisible by"),
        ("+vlnr1.rft.wings=2", rft_arguments, "vlnr1.rft: .*wings.*trl.GRPOConfig"),
        ("vlnr1.data.rft_records=32", rft_arguments, "rft_records is 32: name the sources"),
        ("vlnr1.rft.rewards=[{name: praise, weight: 1}]", reward_functions, "unknown reward 'praise'.*time_decayed"),
        ("vlnr1.rft.rewards=[{name: hard, weight: 1, gamma: 2}]", reward_functions, "no parameter 'gamma'"),
        ("vlnr1.rft.rewards=[]", reward_functions, "rewards is empty"),
        ("vlnr1.rft.rollout=wish", reward_functions, "unknown vlnr1.rft.rollout 'wish'"),
        ("vlnr1.rft.start=run/nothing", check_start, "no SFT checkpoint in run/nothing.*--config-name=vlnr1_sft"),
        ("vlnr1.protocol.turn_angle=15", check_start, "trained with turn_angle 30"),
        ("vlnr1.prompt.num_actions=4", check_start, "trained with num_actions 6, but 4"),
        ("vlnr1.prompt.template=vln_ego", check_start, "trained with template 'compact'"),
        ("vlnr1.memory.budget=3", check_start, "trained with memory .*long_short.*take the same"),
    ],
)
def test_bad_input_is_one_clear_line(configured, override, check, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check(configured(override))


def test_the_online_demonstration_starts_where_its_first_stage_ends():
    first, second = (get_config(f"vlnr1_{name}.yaml", [], CONFIGS) for name in ("sft_little", "rft_online"))
    assert second.vlnr1.rft.start == first.habitat_baselines.checkpoint_folder
    assert second.vlnr1.data.source == first.vlnr1.data.source and second.vlnr1.rft.online is not None
    assert first.vlnr1.sft.max_steps < get_config("vlnr1_sft.yaml", [], CONFIGS).vlnr1.sft.max_steps / 10


def test_reward_parameters_are_bound():
    reward = make_reward("time_decayed", gamma=0.5)
    assert reward([SPACE.format([1, 1])], actions=[[1, 1]]) == [1.5]
    assert reward.__name__ == "time_decayed"


def test_the_curves_of_walks_show_what_they_came_to(tmp_path):
    history = [{"step": s, "reward": s / 2, "kl": 0.1, "walks/success": 0.2} for s in range(3)]
    without = [{key: value for key, value in row.items() if key != "walks/success"} for row in history]
    for name, rows in (("walks", history), ("none", without)):
        draw_curves(rows, tmp_path / f"{name}.png")
    assert (tmp_path / "walks.png").read_bytes() != (tmp_path / "none.png").read_bytes()


def test_the_curves_are_drawn(tmp_path):
    history = [{"step": s, "reward": s / 2, "kl": 0.1} for s in range(3)]
    history += [{"step": s, "eval_reward": 1.0, "eval_answers/accuracy_1": 0.5} for s in (0, 2)]
    draw_curves(history, tmp_path / "new" / "curves.png")
    assert Image.open(tmp_path / "new" / "curves.png").size[0] > 1000


def test_the_configs_differ_from_trls_defaults_only_where_the_paper_says(configured):
    arguments = rft_arguments(configured())
    wanted = {"loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2, "use_bias_correction_kl": False}
    assert {name: getattr(arguments, name) for name in wanted} == wanted
    assert OmegaConf.to_container(configured().vlnr1.data.rft_records) == {"embedded": 4000}
