"""GRPO on VLN-Ego records: eqs. 3–5 and 9 by hand, and our fast path against TRL's plain one."""

from functools import partial

import numpy as np
import pytest
import torch
from habitat_baselines.config.default import get_config
from omegaconf import OmegaConf
from PIL import Image
from trl.data_utils import prepare_multimodal_messages

from habitat_vlnr1.actions import Action
from habitat_vlnr1.lvlm.inputs import IGNORED, PromptEncoder
from habitat_vlnr1.optimisation import reward_functions, rft_arguments
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.records import Episode, RecordError, keep_some
from habitat_vlnr1.rewards import make_reward
from habitat_vlnr1.trainers.fitting import check_start, open_records
from habitat_vlnr1.trainers.rft_fit import (
    Recorded,
    check_enough,
    curves_of,
    draw_curves,
    draw_records,
    make_trainer,
)
from tests.paths import CONFIGS
from tests.tiny_run import SPACE, write_tiny_run

BETA, GAMMA = 0.3, 0.5


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("grpo"))


@pytest.fixture
def configured(home, monkeypatch):
    monkeypatch.chdir(home)

    def make(*overrides):
        return get_config(
            "vlnr1_rft_recorded.yaml",
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


def test_plain_trl_is_given_frames_in_the_models_size(configured):
    """So that a vLLM server, whose processor has limits of its own, makes the same prompt of them."""
    config = configured("vlnr1.rft.rollout=trl", "vlnr1.model.image_size=28")
    trainer = trainer_of(config)
    (first, _), record = trainer.train_dataset, open_records(config, [("embedded", "train")])[2]
    assert [image.size for image in first["images"]] == [(28, 28)] * len(record.frames)
    messages = prepare_multimodal_messages(first["prompt"], images=first["images"])
    text = trainer.processing_class.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    trainer.processing_class.image_processor.size = {"shortest_edge": 28**2, "longest_edge": 28 * 28 * 16384}
    theirs = trainer.processing_class(text=[text], images=first["images"], return_tensors="pt")
    ours = PromptEncoder(trainer.processing_class, get_template("compact"), 6, SPACE, max_pixels=28**2)
    batch = ours.prompts([ours.query(record.instruction, record.frames)])
    assert torch.equal(theirs["input_ids"], batch["input_ids"])
    torch.testing.assert_close(theirs["pixel_values"], batch["pixel_values"], atol=2.1 / 255 / 0.26, rtol=0)


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
    assert moved.shape[-1] == 4 and moved.dtype == torch.float32  # of no other token a logit is computed
    assert (moved.grad.abs().sum((0, 1)) > 0).all()


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
    weighed = {"uniform": 0.5, "hard": 2, f"{__name__}.zero": 1}
    rewards = ", ".join(f"{{name: {name}, weight: {weight}}}" for name, weight in weighed.items())
    config = configured(f"vlnr1.rft.rewards=[{rewards}]")
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
        ("vlnr1.rft.start=a/run/checkpoints", check_start, "no SFT checkpoint in a/run/c.*run_dir=a/run` first"),
        ("vlnr1.protocol.turn_angle=15", check_start, "trained with turn_angle 30"),
        ("vlnr1.prompt.num_actions=4", check_start, "trained with num_actions 6, but 4"),
        ("vlnr1.prompt.template=vln_ego", check_start, "trained with template 'compact'"),
        ("vlnr1.memory.budget=3", check_start, "trained with memory .*uniform.*take the same"),
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


def test_stage_2_starts_from_the_quick_start_and_walks_elsewhere():
    names = ("sft", "rft", "rft_recorded")
    first, walks, recorded = (get_config(f"vlnr1_{name}.yaml", [], CONFIGS) for name in names)
    folders = {config.habitat_baselines.checkpoint_folder for config in (first, walks, recorded)}
    assert len(folders) == 3  # so that both can be trained and looked at side by side
    for second in (walks, recorded):
        assert second.vlnr1.rft.start == first.habitat_baselines.checkpoint_folder
        assert second.vlnr1.memory == first.vlnr1.memory and second.vlnr1.model == first.vlnr1.model
    assert walks.vlnr1.rft.online is not None and recorded.vlnr1.rft.online is None
    assert walks.habitat.dataset.data_path != first.habitat.dataset.data_path == recorded.habitat.dataset.data_path


def test_stage_2_takes_set_up_and_settings_of_the_paper_from_groups():
    paper = get_config("vlnr1_rft.yaml", ["vlnr1/setup=r2r", "vlnr1/rft=paper"], CONFIGS).vlnr1
    assert paper.task.name == "r2r" and paper.rft.online is None and paper.rft.beta == 0.04
    assert "epsilon_high" not in paper.rft and [row.name for row in paper.rft.rewards] == ["time_decayed"]


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


def test_a_curve_that_was_not_logged_has_no_panel():
    walks = [{"step": s, "reward": s / 2, "entropy": 0.3, "kl": None, "walks/success": 0.2} for s in range(3)]
    assert list(curves_of(walks)) == ["reward", "entropy", "walks in training"]
    assert curves_of(walks)["walks in training"] == {"success": [(0, 0.2), (1, 0.2), (2, 0.2)]}
    records = [{"step": 0, "kl": 0.1}, {"step": 2, "eval_reward": 1.0, "eval_answers/accuracy_1": 0.5}]
    assert curves_of(records) == {
        "reward": {"held out": [(2, 1.0)]},
        "KL to the reference": {"KL": [(0, 0.1)]},
        "held-out accuracy": {"action 1": [(2, 0.5)]},
    }


def test_the_curves_are_drawn(tmp_path):
    history = [{"step": s, "reward": s / 2, "kl": 0.1} for s in range(3)]
    history += [{"step": s, "eval_reward": 1.0, "eval_answers/accuracy_1": 0.5} for s in (0, 2)]
    draw_curves(history, tmp_path / "new" / "curves.png")
    assert Image.open(tmp_path / "new" / "curves.png").size[0] > 1000
    draw_curves([], tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").is_file()


def test_the_configs_differ_from_trls_defaults_only_where_the_paper_says(configured):
    arguments = rft_arguments(configured())
    wanted = {"loss_type": "grpo", "scale_rewards": "group", "epsilon": 0.2, "use_bias_correction_kl": False}
    assert {name: getattr(arguments, name) for name in wanted} == wanted
    assert OmegaConf.to_container(configured().vlnr1.data.rft_records) == {"embedded": 4000}


def both(prompts, completions, **kwargs):
    return [0.1 * len(prompt) for prompt in prompts]


def needs_all(completions, completion_ids, actions, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("length", [len(ids) for ids in completion_ids])
    log_metric("seen", float(trainer_state.global_step))
    return [float(len(ids)) for ids in completion_ids]


def abstains(completions, actions, **kwargs):
    return [2.0 if recorded[0] == 1 else None for recorded in actions]


def all_none(completions, **kwargs):
    return [None] * len(completions)


async def later(completions, **kwargs):
    return [float(len(text)) for text in completions]


class Judge:
    async def __call__(self, completions, **kwargs):
        return [1.0] * len(completions)


judge = Judge()


def exact_names(completions, actions):
    return [1.0] * len(completions)


def needs_success(completions, success, **kwargs):
    return success


def test_own_rewards_are_called_as_trl_calls_them_in_the_held_out_evaluation_too(configured):
    """All by keyword, coroutines awaited, None left out of the mean."""
    names = ["both", "needs_all", "abstains", "all_none", "later", "judge"]
    rewards = ",".join(f"{{name: {__name__}.{name}, weight: {number}}}" for number, name in enumerate(names, start=1))
    trainer = trainer_of(configured(f"vlnr1.rft.rewards=[{rewards}]"), numbers=(0, 2))
    trainer.model.eval()
    trainer._generate_and_score_completions(rows(trainer))
    likeliest = trainer.decoder.decode([trainer._prompt(number) for number in (0, 2)], greedy=True)
    starts = [trainer.records[number].answer[0] for number in (0, 2)]
    assert sorted(map(int, starts)) != [1, 1] and 1 in starts
    logged = {key: values[-1] for key, values in trainer._metrics["eval"].items() if key.startswith("greedy")}
    per_row = [
        {
            "both": 0.1 * len(trainer.records[number].instruction),
            "needs_all": float(len(answer.ids)),
            "abstains": 2.0 if start == 1 else None,
            "all_none": None,
            "later": float(len(answer.text)),
            "judge": 1.0,
        }
        for number, answer, start in zip((0, 2), likeliest, starts, strict=True)
    ]
    for name in ("both", "needs_all", "abstains", "later"):
        values = [row[name] for row in per_row if row[name] is not None]
        assert logged[f"greedy_rewards/{name}"] == pytest.approx(np.mean(values)), name
    assert "greedy_rewards/all_none" not in logged
    totals = [sum((names.index(name) + 1) * (value or 0) for name, value in row.items()) for row in per_row]
    assert logged["greedy_reward"] == pytest.approx(np.mean(totals), rel=1e-5)
    assert len(trainer._logs["extra"]["length"]) == 8  # of the sampled answers alone


def test_answers_are_walked_ahead_for_a_reward_that_asks_for_it(configured):
    asked = set()

    def headway(split, episode_id, taken, answer):
        asked.add((split, episode_id, taken))
        return [1.0 if action == Action.LEFT else -1.0 for action in answer]

    config = configured("vlnr1.rft.rewards=[{name: answer_value, weight: 1.0, gamma: 0.5}]")
    records = open_records(config, [("embedded", "train")])
    trainer = make_trainer(config, check_start(config), None, Recorded(records, [2, 9], [5], headway))
    trainer.model.eval()
    inputs = trainer._generate_and_score_completions(rows(trainer))
    episodes = records.episodes
    assert asked == {("", "0", episodes[0].actions[:2]), ("", "1", episodes[1].actions[:1])}

    def worth(text):
        return sum(0.5**k * (1 if action == Action.LEFT else -1) for k, action in enumerate(SPACE.parse(text, 6)))

    decode = trainer.processing_class.tokenizer.decode
    earned = np.array([worth(decode(ids, skip_special_tokens=True)) for ids in answers_of(inputs)]).reshape(2, 4)
    wanted = (earned - earned.mean(1, keepdims=True)) / (earned.std(1, ddof=1, keepdims=True) + 1e-4)  # eq. 3
    assert len(set(earned.ravel())) > 1
    assert inputs["advantages"].numpy() == pytest.approx(wanted.ravel(), abs=1e-4)
    likeliest = trainer.decoder.decode([trainer._prompt(number) for number in (2, 9)], greedy=True)
    greedy = trainer._metrics["eval"]["greedy_rewards/answer_value"][-1]
    assert greedy == pytest.approx(np.mean([worth(answer.text) for answer in likeliest]))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("exact_names", [], r"exact_names does not take all that TRL gives \(completion_ids, .*: add \*\*kwargs"),
        ("needs_success", [], r"needs_success asks for 'success'; there are actions, "),
        ("abstains", ["vlnr1/rft=online"], r"abstains asks for 'actions'; there are .*distance_to_goal"),
    ],
)
def test_a_reward_that_trl_cannot_call_is_told_before_any_work(configured, name, settings, message):
    config = configured(*settings, f"vlnr1.rft.rewards=[{{name: {__name__}.{name}, weight: 1}}]")
    with pytest.raises(ValueError, match=message):
        reward_functions(config)


def test_walks_have_the_columns_that_rewards_may_ask_for():
    from habitat_vlnr1.optimisation import WALK_COLUMNS
    from habitat_vlnr1.trainers.online import MEASURES

    assert set(MEASURES) < set(WALK_COLUMNS)


def test_fewer_records_than_an_update_draws_are_refused(configured):
    """TRL would make no step of them, save nothing, and say nothing."""
    arguments = rft_arguments(configured("vlnr1.rft.per_device_train_batch_size=32", "vlnr1.rft.num_generations=8"))
    check_enough(4, arguments)
    with pytest.raises(ValueError, match="3 rows to train on, but an update draws 4 prompts"):
        check_enough(3, arguments)
