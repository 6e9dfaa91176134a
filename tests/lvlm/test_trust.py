"""What a model's folder may do: it brings weights and settings, and neither code nor a look at the network."""

import json
import os
import subprocess
import sys

import pytest

from habitat_vlnr1.lvlm import checkpoint
from habitat_vlnr1.lvlm.checkpoint import CheckpointError, ModelCard
from habitat_vlnr1.lvlm.tiny import build_tiny

BLOCKED = """
import socket, sys
tried = []
def refuse(*args, **kwargs):
    tried.append(args)
    raise OSError("no network in this test")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = socket.socket.connect_ex = refuse
import habitat_vlnr1.register, habitat_vlnr1.interchange.sharegpt
import habitat_vlnr1.trainers.sft_fit
from habitat_vlnr1.lvlm import checkpoint
model, processor = checkpoint.load(sys.argv[1])
print(type(model).__name__, len(tried))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = build_tiny(["Go to the red table."], space=checkpoint.ActionSpace())
    return checkpoint.save(tmp_path_factory.mktemp("models") / "tiny", model, processor, ModelCard())


def test_offline_nothing_asks_the_network(folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "Qwen2VLForConditionalGeneration 0"


@pytest.mark.slow
def test_a_local_folder_asks_nobody_either(folder):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "Qwen2VLForConditionalGeneration 0"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_in_a_models_folder_never_runs(folder, tmp_path, file, monkeypatch):
    model = tmp_path / "model"
    subprocess.run(["cp", "-r", folder, model], check=True)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    classes = {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil", "AutoProcessor": "evil.Evil"}
    classes["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
    path = model / file
    settings = json.loads(path.read_text())
    settings |= {"auto_map": classes} | ({"model_type": "evil"} if file == "config.json" else {})
    path.write_text(json.dumps(settings))
    monkeypatch.setattr("sys.stdin", None)  # Transformers would ask on a terminal
    try:
        checkpoint.load(model)
    except CheckpointError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_read(folder, tmp_path):
    model = tmp_path / "model"
    subprocess.run(["cp", "-r", folder, model], check=True)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(CheckpointError):
        checkpoint.load(model)
    assert not (tmp_path / "ran").exists()
