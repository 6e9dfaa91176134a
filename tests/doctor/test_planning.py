"""The dry run: its arithmetic against counts of the model itself, and every preset of the paper with its numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from habitat_baselines.common.baseline_registry import baseline_registry
from habitat_baselines.config.default import get_config
from transformers import AutoConfig, AutoModelForImageTextToText

from habitat_vlnr1.doctor.host_memory import PROGRAM, SIMULATOR, WORKER, host_memory
from habitat_vlnr1.doctor.model_sizes import Memory, Size, activations, architecture, empty_model, training_memory
from habitat_vlnr1.doctor.planning import make_plan, print_plan
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.frame_files import encode_jpeg
from habitat_vlnr1.optimisation import accumulation
from habitat_vlnr1.records import Episode
from tests.paths import CONFIGS

PARAMETERS = {"qwen2_vl_2b": 2_208_985_600, "qwen2_vl_7b": 8_291_375_616}  # of the released checkpoints
SETUPS = {  # task, protocol, SFT's sources, RFT's sources, frame tokens
    "r2r": ("r2r", "r2r", ["r2r"], ["r2r"], 64),
    "rxr": ("rxr", "rxr", ["rxr"], ["rxr"], 70),
    "r2r_rxr": ("r2r", "r2r", ["r2r", "rxr_r2r"], ["r2r", "rxr_r2r"], 64),
    "cross_domain": ("rxr", "r2r", ["r2r"], ["rxr_r2r"], 64),
}
RECORDS = {"r2r": 630_000, "rxr": 1_200_000, "rxr_r2r": 1_200_000}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.parametrize("model", PARAMETERS)
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("stage", ["sft", "rft"])
def test_the_papers_presets(stage, setup, model, capsys):
    config = get_config(f"vlnr1_{stage}_paper.yaml", [f"vlnr1/setup={setup}", f"vlnr1/model={model}"], CONFIGS)
    ours, (task, protocol, sources, rft_sources, frame) = config.vlnr1, SETUPS[setup]
    assert (ours.task.name, ours.protocol.name, ours.data.sources) == (task, protocol, sources)
    assert ours.data.rft_records == dict.fromkeys(rft_sources, 10_000)
    assert ours.run_dir == f"data/vlnr1/paper_{setup}_{model}"
    assert (ours.memory.strategy, ours.memory.budget, ours.prompt.num_actions) == ("long_short", 16, 6)
    options = ours[stage]
    assert options.deepspeed.zero_optimization.stage == 3 and options.bf16 and options.num_train_epochs == 1
    batch = options.per_device_train_batch_size, accumulation(config, stage, 8)
    plan = print_plan(config, stage)
    if stage == "sft":
        assert (options.learning_rate, options.lr_scheduler_type, options.warmup_steps) == (5e-6, "cosine", 0.1)
        assert batch == (2, 4)
        assert plan.steps == -(-sum(RECORDS[source] for source in sources) // 64)
    else:
        assert (options.learning_rate, options.weight_decay) == (1e-6, 0.01)
        assert (options.beta, options.num_generations, batch) == (0.04, 8, (1, 1))
        assert plan.steps == 10_000 * len(rft_sources)  # a prompt has 8 answers, a step takes 8
    assert plan.gpus == 8 and plan.size.parameters == plan.size.trained == PARAMETERS[model]
    assert (plan.tokens.frame, plan.tokens.frames, plan.tokens.answer) == (frame, 17, 54)
    printed = capsys.readouterr().out
    assert f"{PARAMETERS[model]:,}" in printed and printed.count("← configured") == 1
    assert not Path("data").exists()


def small(**text):
    text = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4} | text
    text |= {"num_key_value_heads": 4, "vocab_size": 100, "tie_word_embeddings": True}
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 4, "hidden_size": 64}
    return AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=vision, tie_word_embeddings=True)


def test_activations_are_what_autograd_keeps():
    """A decoder layer and a vision block of Qwen2-VL-2B's widths on the meta device, without attention matrices."""
    config = small(hidden_size=1536, intermediate_size=8960, num_attention_heads=12)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        tokens = torch.zeros(1, 10, 1536, dtype=torch.bfloat16, requires_grad=True)
        angles = torch.zeros(1, 10, 128, dtype=torch.bfloat16)
    weights = {id(p.untyped_storage()) for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            size = max(tensor.nbytes, kept.get(id(storage), (storage, 0))[1])
            kept[id(storage)] = storage, size
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model.language_model.layers[0](tokens, position_embeddings=(angles, angles), attention_mask=None)
    seen = sum(size for _, size in kept.values()) / 10
    config.get_text_config().num_hidden_layers = 1
    assert activations(config, 1, 0, checkpointing=False) == pytest.approx(seen, rel=0.02)


def test_activations_with_checkpointing_keep_inputs_and_one_layer():
    config = small()
    layer, block = (30 * 64 + 8 * 160) * 10, (22 * 32 + 6 * 128) * 40
    assert activations(config, 10, 40, checkpointing=False) == 3 * layer + 2 * block
    assert activations(config, 10, 40, checkpointing=True) == 2 * 3 * 64 * 10 + 2 * 2 * 32 * 40 + max(layer, block)
    assert activations(config, 10, 40, checkpointing=False, vision_trained=False) == 3 * layer


def test_memory_by_hand():
    size = Size(parameters=8 * 10**9, vision=0, trained=8 * 10**9)
    n = 8e9
    assert training_memory("DDP", size, 1, 2) == Memory(2 * n, 0, 2 * n, 4 * n)
    assert training_memory("DDP", size, 8, 4) == Memory(6 * n, 0, 8 * n, 8 * n)
    assert training_memory("ZeRO-2", size, 8, 2, reference=True) == Memory(2 * n, 2 * n, 6 * n / 8, 12 * n / 8)
    assert training_memory("ZeRO-3", size, 8, 2) == Memory(2 * n / 8 + 2e9, 0, 6 * n / 8, 12 * n / 8)
    rollouts = training_memory("ZeRO-3", size, 8, 2, reference=True, rollouts=True)
    assert rollouts == Memory(2 * n / 8 + 2 * n, 2 * n / 8, 6 * n / 8, 12 * n / 8)
    adapters = Size(parameters=8 * 10**9, vision=0, trained=10**7)
    assert training_memory("DDP", adapters, 1, 2).total == 2 * n + 6e7


def test_what_deepspeed_offloads_is_host_memory(monkeypatch, capsys):
    size = Size(parameters=8 * 10**9, vision=0, trained=8 * 10**9)
    n = 8e9
    assert training_memory("ZeRO-2", size, 8, 2, offload=["optimizer"]) == Memory(2 * n, 0, 0, 0, 16 * n / 8)
    both = training_memory("ZeRO-3", size, 8, 2, offload=["optimizer", "param"])
    assert both == Memory(2e9, 0, 0, 0, 20 * n / 8) and both.total == 2e9
    monkeypatch.setenv("WORLD_SIZE", "8")
    zero = "+vlnr1.deepspeed.zero_optimization.offload_optimizer={device: cpu}"
    plain, moved = (make_plan(get_config("vlnr1_sft_paper.yaml", more, CONFIGS), "sft") for more in ([], [zero]))
    assert moved.memory["ZeRO-2"] == plain.memory["ZeRO-2"]  # another engine is planned as it comes
    assert moved.memory["ZeRO-3"].total < plain.memory["ZeRO-3"].total
    more = moved.host.model - (2 * PARAMETERS["qwen2_vl_2b"] / 8 if torch.cuda.is_available() else 0)
    assert more >= 18 * PARAMETERS["qwen2_vl_2b"] / 8
    print_plan(get_config("vlnr1_sft_paper.yaml", [zero], CONFIGS), "sft")
    moved_gib = 18 * PARAMETERS["qwen2_vl_2b"] / 8 / 2**30
    assert f"offload_optimizer: {moved_gib:.1f} GiB of a process in host memory instead" in capsys.readouterr().out


def test_lora_and_frozen_vision_are_counted():
    lora = {"r": 2, "target_modules": ["q_proj"]}
    assert Size.of(empty_model(small(), lora)).trained == 3 * 2 * (64 + 64)
    config = get_config("vlnr1_sft.yaml", ["vlnr1/model=qwen2_vl_2b", "vlnr1.model.freeze_vision=true"], CONFIGS)
    size = make_plan(config, "sft").size
    assert size.trained == size.parameters - size.vision


def test_facts_are_taken_for_their_own_model_only():
    facts = {"hub_id": "a/b", "model_type": "qwen2_vl"}
    assert architecture("a/b", facts).model_type == "qwen2_vl"
    assert architecture("a/c", facts) is None
    overrides = ["vlnr1/model=qwen2_vl_2b", "vlnr1.model.path=a/c"]
    plan = print_plan(get_config("vlnr1_sft.yaml", overrides, CONFIGS), "sft")
    assert plan.size is None and plan.tokens.frame == 25  # 128² pixels are scaled to 140²


def test_exported_data_are_counted(monkeypatch):
    config = get_config("vlnr1_sft.yaml", ["vlnr1.sft.max_steps=-1", "vlnr1.sft.keep_straight=1"], CONFIGS)
    assert make_plan(config, "sft").steps is None
    writer = EpisodeWriter(Path("data/vln_ego/embedded/train"), {})
    frame = encode_jpeg(np.zeros((16, 16, 3), np.uint8), 92)
    for number in range(3):
        writer.write(Episode(str(number), "house", "go", (1,) * 9 + (0,)), [frame] * 10)
    writer.close()
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan = make_plan(config, "sft")
    assert plan.records == {"embedded": (30, "exported")} and plan.frames_disk == 30 * 4096
    sft = config.vlnr1.sft
    assert sft.mirror and plan.rows == 2 * 3 * -(-10 // sft.steps_per_row)
    batch = sft.per_device_train_batch_size * accumulation(config, "sft", 2) * 2
    assert plan.steps == int(np.ceil(plan.rows / batch * sft.num_train_epochs))


@pytest.mark.parametrize("stage", ["sft", "rft"])
def test_a_dry_run_makes_nothing(stage, capsys):
    config = get_config(f"vlnr1_{stage}.yaml", ["vlnr1.dry_run=true"], CONFIGS)
    baseline_registry.get_trainer(f"vlnr1_{stage}")(config).train()
    assert f"Dry run of {stage}" in capsys.readouterr().out
    assert not Path("data/datasets").exists() and not Path("data/vln_ego").exists()


def test_host_memory_by_hand(monkeypatch, capsys):
    """Of the paper's SFT on eight GPUs with two workers, and of online RFT."""
    config = get_config("vlnr1_sft_paper.yaml", ["vlnr1.sft.dataloader_num_workers=2"], CONFIGS)
    host = make_plan(config, "sft").host
    assert host.model == 2 * PARAMETERS["qwen2_vl_2b"] / 8  # ZeRO-3 loads its part
    assert host.program == PROGRAM
    assert host.workers == 2 * (WORKER + 128 * 2**20)
    assert host.shared == 2 * 2 * 2 * (17 * 64 * 4) * (3 * 2 * 14 * 14 * 4)
    assert host.simulators == host.prompts == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    print_plan(config, "sft")
    assert f"of 4 processes {4 * host.total / 2**30:.1f} GiB" in capsys.readouterr().out
    online = get_config("vlnr1_rft_online.yaml", [], CONFIGS)
    host = host_memory(online, "rft", 1, 0, 0, 14)
    assert host.simulators == online.vlnr1.rft.online.num_environments * SIMULATOR
    rows = online.vlnr1.rft.per_device_train_batch_size * accumulation(online, "rft", 1)
    protocol = online.vlnr1.protocol
    assert host.prompts == rows * (online.vlnr1.memory.budget + 1) * protocol.width * protocol.height * 3
    assert host.shared == host.workers == 0
