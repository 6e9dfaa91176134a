"""Every key of `vlnr1.*` in every config: right as it stands, and a wrong value is one line that names it."""

from pathlib import Path

import pytest
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config
from omegaconf import OmegaConf

from habitat_vlnr1.config import edited
from habitat_vlnr1.optimisation import FIXED, rft_arguments, sft_arguments
from habitat_vlnr1.settings import RULES, check_settings
from tests.paths import CONFIGS

NAMES = sorted(
    file.stem for file in Path(CONFIGS).glob("vlnr1_*.yaml") if "vlnr1_ppo" not in file.stem
)  # PPO's are Habitat's trainer's
ANY_TEXT = {  # names of files, folders, splits; what they name is looked for when it is needed
    *("base_dir", "ablation.name", "ablation.root", "ablation.stage_1"),
    *("run_dir", "sft_config", "checkpoint", "results_dir", "task.name", "protocol.name", "data.root", "data.source"),
    *("data.setup", "model.name", "model.path", "rft.start", "rft.held_out.split", "dagger.start", "il.run_dir"),
    *("net.rgb_weights", "net.depth_weights", "convert.to", "convert.input", "convert.output", "convert.images"),
    *(f"{stage}.{key}" for stage in ("sft", "rft") for key in ("lr_scheduler_type", "optim")),  # TRL's choices
    *("rft.loss_type", "task.questions.data_path", "serve.host"),
    *("remote.url", "remote.model", "remote.key_variable", "remote.cache"),
    *("eqa.open_eqa.file", "eqa.open_eqa.frames", "eqa.judge.url", "eqa.judge.model", "eqa.judge.key_variable"),
}
NULL_MEANS_SOMETHING = {
    *("checkpoint", "mixture", "deepspeed", "task.scenes", "plan.gpus", "model.path", "model.cpu_threads"),
    *("model.lora", "model.architecture", "model.build", "model.build.warmup", "model.build.warmup.words"),
    *("sft.deepspeed", "rft.deepspeed", "rft.epsilon_high"),
    *("sft.save_total_limit", "rft.save_total_limit", "rft.online", "dagger.take_over", "dagger.draw_every"),
    *(f"{stage}.{key}" for stage in ("sft", "rft") for key in ("gradient_accumulation_steps", "global_batch_size")),
    *("model.attn_implementation", "decoding.drafts"),
    *("dagger.expert", "il.cpu_threads", "net.rgb_weights", "net.depth_weights", "convert.output", "convert.images"),
    *("eval.shard", "eval.num_shards", "eval.together"),
    *(f"remote.{key}" for key in ("url", "model", "grammar", "max_requests", "max_total_tokens", "cache")),
    *("task.questions", "task.questions.make", "eqa.open_eqa.file", "eqa.judge.url"),
}
ZERO_MEANS_SOMETHING = {
    *("data.label_offset", "memory.budget", "decoding.temperature", "export.shard", "eval.shard", "eval.videos"),
    *("eval.report_mb", "convert.report_mb", "serve.port", "serve.memory_mb", "serve.batch_wait_ms"),
    *("decoding.drafts", "decoding.feature_cache_mb", "decoding.prefix_cache_mb"),
    *("model.build.seed",),
    *("model.build.warmup.steps", "model.build.warmup.learning_rate", "model.build.warmup.workers"),
    *("model.build.warmup.words.learning_rate", "protocol.camera_height", "rft.beta"),
    "rft.epsilon_high",
    *("rft.epsilon", "dagger.beta", "dagger.episodes", "dagger.temperature", "il.learning_rate", "il.workers"),
    *(
        f"{stage}.{key}"
        for stage in ("sft", "rft")
        for key in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "keep_straight")
    ),
    *("sft.dataloader_num_workers", "eqa.pictures"),
}


@pytest.fixture(scope="module")
def configs():
    """`vlnr1` alone of each, without interpolations."""
    made = {name: get_config(f"{name}.yaml", [], CONFIGS) for name in NAMES}
    return {
        name: OmegaConf.create({"vlnr1": OmegaConf.to_container(config.vlnr1, resolve=True)})
        for name, config in made.items()
    }


def leaves(node, prefix=""):
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in RULES:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value
            if isinstance(value, dict):
                yield from ((k, v) for k, v in leaves(value, f"{key}.") if k in RULES)


def keys(configs):
    """Each key with a config that has it, and its value there."""
    found = {}
    for config in configs.values():
        for key, value in leaves(OmegaConf.to_container(config.vlnr1, resolve=True)):
            found.setdefault(key, (config, value))
            if value is not None and found[key][1] is None:
                found[key] = (config, value)
    return found


def refused(config, key, value):
    with pytest.raises(ValueError) as said:
        check_settings(edited(config, **{f"vlnr1.{key}": value}))
        pytest.fail(f"vlnr1.{key}={value!r} was taken")
    told = str(said.value)
    assert f"vlnr1.{key}" in told and "\n" not in told, told


def test_the_configs_are_right_as_they_stand(configs):
    for config in configs.values():
        check_settings(config)


def test_every_key_has_a_rule_and_every_rule_a_key(configs):
    found = keys(configs)
    without = [key for key in found if key not in RULES and not key.startswith(("observations.", "extra_sensors."))]
    assert without == []
    assert set(RULES) - set(found) == set()


@pytest.mark.parametrize("stage, arguments", [("sft", sft_arguments), ("rft", rft_arguments)])
def test_curves_go_to_the_tracker_that_is_named(stage, arguments):
    def named(*tracker):
        return arguments(get_config(f"vlnr1_{stage}.yaml", list(tracker), CONFIGS)).report_to

    assert named() == ["tensorboard"]
    assert named(f"+vlnr1.{stage}.report_to=none") == []
    assert named(f"+vlnr1.{stage}.report_to=[tensorboard]") == ["tensorboard"]
    with pytest.raises(ValueError, match=rf"vlnr1\.{stage}\.report_to: there is no tracker 'wandbb'; choose among "):
        named(f"+vlnr1.{stage}.report_to=wandbb")
    with pytest.raises(ValueError, match="neptune is not installed: pip install neptune"):
        named(f"+vlnr1.{stage}.report_to=neptune")
    with pytest.raises(ValueError, match="report_to is 3: give a tracker's name"):
        named(f"+vlnr1.{stage}.report_to=3")


def test_a_wrong_type_is_refused(configs):
    for key, (config, value) in keys(configs).items():
        if key in RULES:
            refused(config, key, ["a", {"list": 1}] if not isinstance(value, list) else {"a": 1})
            if not isinstance(value, str) and key not in ANY_TEXT:
                refused(config, key, "seven")


def test_null_is_refused_where_it_means_nothing(configs):
    for key, (config, _) in keys(configs).items():
        if key in RULES and key not in NULL_MEANS_SOMETHING:
            refused(config, key, None)


def test_numbers_out_of_range_are_refused(configs):
    for key, (config, value) in keys(configs).items():
        if key in RULES and type(value) in (int, float):
            refused(config, key, -7)
            refused(config, key, float("nan"))
            refused(config, key, True)
            if key not in ZERO_MEANS_SOMETHING:
                refused(config, key, 0)
            if type(value) is int and isinstance(RULES[key].what, str) and RULES[key].what.startswith("a whole"):
                refused(config, key, 1.5)


def test_unknown_names_are_refused(configs):
    for key, (config, value) in keys(configs).items():
        if isinstance(value, str) and key in RULES and key not in ANY_TEXT:
            said_of_group = "memory" if key == "memory.strategy" else key
            with pytest.raises(ValueError, match=f"vlnr1.{said_of_group}.*elephant"):
                check_settings(edited(config, **{f"vlnr1.{key}": "elephant"}))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("vlnr1_sft", "vlnr1.eval.videos=-1", r"vlnr1.eval.videos is -1: give a whole number, 0 or more"),
        ("vlnr1_sft", "vlnr1.model.dtype=fp16", r"model.dtype is 'fp16': give one of float32, bfloat16"),
        ("vlnr1_sft", "vlnr1.model.template=1", r"vlnr1.model.template is 1: give a text"),
        ("vlnr1_sft", "vlnr1.model.template=elephant", r"vlnr1.model.template: unknown prompt template 'elephant'"),
        ("vlnr1_sft", "vlnr1.data.sources=[]", r"vlnr1.data.sources is \[\]: give a list of 1 or more"),
        ("vlnr1_sft", "vlnr1.data.sources=[a/b]", r"vlnr1.data.sources"),
        ("vlnr1_sft", "+vlnr1.eval.vidoes=3", r"vlnr1.eval.vidoes: there is no such key; vlnr1.eval has"),
        ("vlnr1_sft", "+vlnr1.model.build.depth=3", r"vlnr1.model.build.depth: there is no such key"),
        ("vlnr1_sft_little", "vlnr1.memory.short_window=4", r"vlnr1.memory: the short part takes"),
        ("vlnr1_sft", "+vlnr1.memory.wings=4", r"vlnr1.memory: .*wings"),
        ("vlnr1_sft", "vlnr1.decoding.execute_horizon=7", r"execute_horizon is 7: give at most .*num_actions"),
        ("vlnr1_sft", "vlnr1.model.build=null", r"vlnr1.model.path and vlnr1.model.build are null"),
        ("vlnr1_sft", "vlnr1.model.image_size=80", r"image_size is 80: a new model takes a multiple of 28"),
        ("vlnr1_sft", "vlnr1.eval.policies.vlnr1_sft=Nobody", r"eval.policies.vlnr1_sft: no policy 'Nobody'"),
        ("vlnr1_sft", "+vlnr1.eval.policies.x={checkpoint: a}", r"vlnr1.eval.policies"),
        ("vlnr1_il", "vlnr1.il.policy=Nobody", r"vlnr1.il.policy: no policy 'Nobody' is registered"),
        ("vlnr1_rft_recorded", "vlnr1.rft.temperature=0", r"vlnr1.rft.temperature is 0: give a number above 0"),
        ("vlnr1_rft_recorded", "vlnr1.data.rft_records.embedded=0", r"vlnr1.data.rft_records is .*-1"),
        ("vlnr1_rft_recorded", "vlnr1.rft.rewards=[{name: hard}]", r"vlnr1.rft.rewards is .*weight: <number>"),
        ("vlnr1_rft_recorded", "vlnr1.rft.held_out=null", r"vlnr1.rft.held_out"),
        ("vlnr1_convert", "vlnr1.convert.view_records=0", r"vlnr1.convert.view_records is 0"),
        ("vlnr1_dagger", "vlnr1.dagger.beta=[0.5,2]", r"vlnr1.dagger.beta"),
    ],
)
def test_slips(name, override, message):
    with pytest.raises(ValueError, match=message):
        check_settings(get_config(f"{name}.yaml", [override], CONFIGS))


def test_another_packages_group_and_free_options_pass():
    more = ["+vlnr1.theirs.anything=1", "+vlnr1.sft.label_smoothing_factor=0.1", "vlnr1.model.lora={r: 4}",
            "+vlnr1.eval.policies.x={name: VLNR1Policy, checkpoint: a}", "vlnr1.mixture={lead: a}"]  # fmt: skip
    check_settings(get_config("vlnr1_sft.yaml", more, CONFIGS))


@pytest.mark.parametrize(("stage", "arguments"), [("sft", sft_arguments), ("rft", rft_arguments)])
def test_what_is_decided_elsewhere_is_told(stage, arguments):
    config = get_config(f"vlnr1_{stage}.yaml", ["vlnr1.model.lora={wings: 2}"], CONFIGS)
    for key in FIXED:
        with pytest.raises(ValueError, match=rf"vlnr1.{stage}.{key} cannot be set: "):
            arguments(edited(config, **{f"vlnr1.{stage}.{key}": "x"}))
    with pytest.raises(ValueError, match=r"vlnr1.model.lora: .*wings.*peft.LoraConfig"):
        arguments(config)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vlnr1_doctor",)])
def test_every_command_says_it_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = get_config(f"{name}.yaml", ["vlnr1.eval.videos=-1"], CONFIGS)
    with pytest.raises(ValueError, match=r"vlnr1.eval.videos is -1"):
        baseline_registry.get_trainer(config.habitat_baselines.trainer_name)(config).train()
    assert not list(tmp_path.rglob("*.*"))
