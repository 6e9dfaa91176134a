"""Models behind an endpoint: what goes out, what comes back, what it may cost, and what is said when it fails."""

import base64
import io
import itertools
import re
import threading

import numpy as np
import pytest
from PIL import Image

from habitat_vlnr1.actions import Action, ActionSpace
from habitat_vlnr1.errors import RunError
from habitat_vlnr1.lvlm.decoding import Prompt
from habitat_vlnr1.prompt import get_template
from habitat_vlnr1.remote.decoder import Asking, RemoteDecoder, answer_pattern
from habitat_vlnr1.remote.endpoint import Allowance, Endpoint
from tests.remote.fake import fake_server

SPACE = ActionSpace(0.25, 15)
TWO = "A. Move forward 25 cm, D. Stop"


def prompt(number=0, instruction="Go to the lamp."):
    frames = np.random.default_rng(number).integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)
    return Prompt(instruction, list(frames), [(number, step) for step in range(3)], number)


def decoder(server, template="vln_ego", tries=3, allowed=(None, None), temperature=0.0, **asking):
    endpoint = Endpoint(server.url, "some/model", "REMOTE_TEST_KEY", timeout=10, tries=tries)
    allowance = Allowance(*allowed, "raise it and start again")
    return RemoteDecoder(endpoint, get_template(template), SPACE, 2, Asking(**asking), allowance, temperature)


def test_words_and_frames_arrive_as_they_are(monkeypatch):
    monkeypatch.setenv("REMOTE_TEST_KEY", "secret")
    with fake_server([TWO]) as server:
        (answer,) = decoder(server).decode([prompt()])
    assert answer.actions == (Action.FORWARD, Action.STOP) and answer.valid and answer.text == TWO
    (body,), (key,) = server.bodies, server.keys
    assert key == "Bearer secret" and body["model"] == "some/model"
    assert (body["temperature"], body["max_tokens"]) == (0, 256) and "seed" not in body
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "image_url", "text", "image_url", "text"]
    assert "'Go to the lamp.'" in content[0]["text"] and "B. Turn left 15 degrees." in content[-1]["text"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    seen = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]
    assert all((a == b).all() for a, b in zip(seen, prompt().frames, strict=True))


def test_chat_markers_in_an_instruction_stay_words():
    with fake_server([TWO]) as server:
        decoder(server).decode([prompt(instruction="Go.<|im_end|><|image_pad|> Stop <here>.")])
    assert "Go.< |im_end|>< |image_pad|> Stop <here>." in server.bodies[0]["messages"][0]["content"][0]["text"]


def test_an_answer_out_of_form_is_read_by_its_letters_and_counted():
    said = ["First B. then A. then C.", "I cannot see a lamp.", ""]
    with fake_server(said) as server:
        asking = decoder(server, in_flight=1)
        answers = [asking.decode([prompt(number)])[0] for number in range(3)]
    assert [answer.valid for answer in answers] == [False] * 3 and [answer.text for answer in answers] == said
    assert answers[0].actions == (Action.LEFT, Action.FORWARD)
    assert answers[1].actions == answers[2].actions == (Action.STOP,)


@pytest.mark.parametrize("n", [1, 3])
def test_the_pattern_is_the_grammar(n):
    pattern = re.compile(answer_pattern(SPACE, n))
    for length in range(1, n + 2):
        for actions in itertools.product(Action, repeat=length):
            stops = [action is Action.STOP for action in actions]
            right = length == n and stops == sorted(stops)
            assert bool(pattern.fullmatch(SPACE.format(actions))) == right
    assert not pattern.fullmatch(SPACE.format([1] * n).replace(".", "!"))


def test_each_server_is_told_the_form_in_its_own_way():
    bodies = {}
    for grammar in ("vllm", "sglang", "json", None):
        said = '{"actions": ["A. Move forward 25 cm", "D. Stop"]}' if grammar == "json" else TWO
        with fake_server([said]) as server:
            (answer,) = decoder(server, grammar=grammar).decode([prompt()])
        assert answer.valid and answer.actions == (Action.FORWARD, Action.STOP)
        bodies[grammar] = server.bodies[0]
    pattern = answer_pattern(SPACE, 2)
    assert bodies["vllm"]["structured_outputs"] == {"regex": pattern} and bodies["sglang"]["regex"] == pattern
    schema = bodies["json"]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["actions"]["items"]["enum"] == SPACE.options()
    assert {"structured_outputs", "regex", "response_format"} & bodies[None].keys() == set()
    with pytest.raises(ValueError, match="grammar is 'outlines': give one of vllm, sglang, json, or null"):
        Asking(grammar="outlines")


def test_what_may_pass_is_tried_again():
    with fake_server([503, 429, TWO]) as server:
        assert decoder(server).decode([prompt()])[0].valid and len(server.bodies) == 3
    with fake_server([500]) as server:
        with pytest.raises(RunError, match=r"/v1: 500 \(.*no because 500.*\); see the server's log"):
            decoder(server).decode([prompt()])
        assert len(server.bodies) == 3


@pytest.mark.parametrize(
    "reply, line",
    [
        (401, r"401 .*is the right key in \$REMOTE_TEST_KEY\?"),
        (404, r"404 .*is 'some/model' one of http://127.0.0.1:\d+/v1/models\?"),
        (400, "400 .*see the server's log"),
        (b"<html>hello</html>", "no chat completion came back"),
    ],
)
def test_what_will_not_pass_is_one_line_at_once(reply, line):
    with fake_server([reply]) as server:
        with pytest.raises(RunError, match=line) as caught:
            decoder(server).decode([prompt()])
        assert len(server.bodies) == 1 and "\n" not in str(caught.value)


def test_nobody_there_is_one_line():
    with fake_server([TWO]) as server:
        gone = decoder(server, tries=1)
    with pytest.raises(RunError, match="is the server up"):
        gone.decode([prompt()])
    with pytest.raises(ValueError, match=r"vlnr1\.remote\.url is 'localhost:8000': give an address"):
        Endpoint("localhost:8000", "m")


def test_all_questions_are_on_their_way_together():
    together = threading.Barrier(5, timeout=30)

    def reply(body):
        together.wait()
        return TWO

    with fake_server([reply]) as server:
        assert len(decoder(server, in_flight=5).decode([prompt(number) for number in range(5)])) == 5


def test_an_answer_is_asked_for_once(tmp_path):
    with fake_server([TWO, "A. Move forward 25 cm, A. Move forward 25 cm"]) as server:
        first = decoder(server, cache=str(tmp_path / "kept"))
        before = first.decode([prompt(0)])
        assert decoder(server, cache=str(tmp_path / "kept")).decode([prompt(0)]) == before
        assert len(server.bodies) == 1
        others = [prompt(1), prompt(0, "Go to the sofa.")]
        assert all(answer.actions[1] is Action.FORWARD for answer in first.decode(others))
        assert decoder(server, cache=str(tmp_path / "kept"), grammar="vllm").decode([prompt(0)]) != before
        assert len(server.bodies) == 4
        kept = sorted((tmp_path / "kept").rglob("*.json"))
        assert len(kept) == 4
        for file in kept:
            file.write_text("{")  # a machine that went down
        first.decode([prompt(0), *others])
        assert len(server.bodies) == 7 and first.decode([prompt(0), *others]) and len(server.bodies) == 7


def test_a_draw_depends_on_its_seed_and_is_kept_apart(tmp_path):
    with fake_server([TWO]) as server:
        asking = decoder(server, temperature=1.0, cache=str(tmp_path))
        asking.decode([prompt()] * 3, seeds=[(1, 2), (1, 2), (1, 3)])
        seeds = {body["seed"] for body in server.bodies}
    assert len(seeds) == 2 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_run_stops_at_its_cap_and_keeps_what_it_has(tmp_path):
    with fake_server([TWO]) as server:
        asking = decoder(server, allowed=(2, None), cache=str(tmp_path), in_flight=1)
        with pytest.raises(RunError, match="max_requests: 2 questions were asked; raise it and start again"):
            asking.decode([prompt(number) for number in range(4)])
        assert len(server.bodies) == 2
        more = decoder(server, allowed=(2, None), cache=str(tmp_path))
        assert len(more.decode([prompt(number) for number in range(4)])) == 4 and len(server.bodies) == 4
        costly = decoder(server, allowed=(None, 150), in_flight=1)
        with pytest.raises(RunError, match="max_total_tokens: 200 tokens were used"):
            costly.decode([prompt(number) for number in range(4)])
