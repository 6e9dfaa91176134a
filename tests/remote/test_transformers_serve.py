"""The remote policy against a real server: `transformers serve` with the tiny checkpoint answers as it does here."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from habitat_vlnr1.lvlm.decoding import ActionDecoder, Prompt, load_decoder
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.remote.decoder import Asking, RemoteDecoder
from habitat_vlnr1.remote.endpoint import Allowance, Endpoint
from tests.tiny_run import SPACE, WORDS, write_tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("run")) / "run/checkpoints/checkpoint-7"


@pytest.fixture(scope="module")
def url(checkpoint):
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module, reason="transformers serve needs it: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", str(checkpoint)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(240):
            assert server.poll() is None, "the server has ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def test_the_server_answers_as_the_model_does_here(checkpoint, url, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (12, 56, 56, 3), dtype=np.uint8)
    prompts = [Prompt(WORDS[k % 2], list(frames[k : k + 1 + k % 3]), None, None) for k in range(8)]
    here: ActionDecoder = load_decoder(checkpoint, constrained=False)
    endpoint, free = Endpoint(url, str(checkpoint)), Allowance(None, None, "")
    there = RemoteDecoder(endpoint, get_template("compact"), SPACE, 6, Asking(max_tokens=96), free)
    # A random model says anything, for as long as it may, which is longer there: what counts is that it is the same.
    for own, remote in zip(here.decode(prompts), there.decode(prompts), strict=True):
        assert len(own.text) > 20 and remote.text.startswith(own.text.lstrip().rstrip("\N{REPLACEMENT CHARACTER}"))
