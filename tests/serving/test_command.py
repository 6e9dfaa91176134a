"""`vlnr1_serve` and the client as the docs' commands start them."""

import os
import re
import signal
import subprocess
import sys

import pytest
from habitat_baselines.config.default import get_config

from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.trainers.serve import TOKEN, ServeTrainer, is_local
from tests.paths import CONFIGS, ROOT
from tests.tiny_run import WORDS, write_tiny_run


def test_others_are_served_with_a_token_only(monkeypatch):
    assert [is_local(host) for host in ("localhost", "127.0.0.1", "::1")] == [True] * 3
    assert [is_local(host) for host in ("0.0.0.0", "::", "10.0.0.3", "gpu-box", "")] == [False] * 5
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(VLNR1Error, match=r"vlnr1.serve.host is 0.0.0.0, .*set VLNR1_TOKEN"):
        ServeTrainer(get_config("vlnr1_serve.yaml", ["vlnr1.serve.host=0.0.0.0"], CONFIGS)).train()


@pytest.mark.slow
def test_server_and_client_are_two_processes(tmp_path):
    home = write_tiny_run(tmp_path)
    run = [sys.executable, "-m", "habitat_baselines.run", "--config-name=vlnr1_serve", "vlnr1.serve.port=0"]
    run += ["vlnr1.checkpoint=run/checkpoints", "vlnr1.decoding.execute_horizon=2"]
    environment = {**os.environ, TOKEN: "secret"}
    server = subprocess.Popen(run, stdout=subprocess.PIPE, text=True, cwd=home, env=environment)
    try:
        lines = iter(server.stdout.readline, "")
        address = next(found[1] for line in lines if (found := re.search(r"serving .* on (ws://localhost:\d+)", line)))
        frames = sorted((home / "ego/embedded/train/frames/s/0").glob("*.jpg"))[:3]
        client = [sys.executable, "-W", "error", str(ROOT / "habitat_vlnr1/serving/client.py"), "--address", address]
        client += ["--instruction", WORDS[0], *map(str, frames)]
        done = subprocess.run(client, capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr
        assert re.search(r"0000.jpg: (Stop|Move forward 50 cm|Turn (left|right) 30 degrees)", done.stdout)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
