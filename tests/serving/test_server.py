"""The policy server and its client, over real sockets: who asks in parallel, and who misbehaves."""

import asyncio
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from habitat_vlnr1.agent import Navigator, VLNR1Agent
from habitat_vlnr1.frame_files import decode_picture, encode_jpeg
from habitat_vlnr1.serving.client import PolicyClient, ServerSaid
from habitat_vlnr1.serving.server import Limits, PolicyServer
from tests.tiny_run import WORDS, write_tiny_run

STEPS = 7
BAD = [
    b"",
    b"\xc1",
    b"\x93\x01\x02\x03",
    b"\x91" * 3000,
    b"\x81\x91\x01\x02",
    msgpack.packb({"instruction": "go"}),
    msgpack.packb({"instruction": 3, "rgb": b"x"}),
    msgpack.packb({"instruction": " ", "rgb": b"x"}),
    msgpack.packb({"instruction": "go", "rgb": b"\xff\xd8\xff\xe0 no picture"}),
    msgpack.packb({"instruction": "go", "rgb": {"data": b"123", "shape": [2, 2, 3], "dtype": "|u1"}}),
    msgpack.packb({"instruction": "go", "rgb": {"data": b"", "shape": [0, 2, 3], "dtype": "|u1"}}),
    msgpack.packb({"instruction": "go", "rgb": {"data": b"x", "shape": [-1, -1, 3], "dtype": "|u1"}}),
    msgpack.packb({"instruction": "go", "rgb": {"data": b"x", "shape": [1], "dtype": "O"}}),
    msgpack.packb({"instruction": "go", "rgb": b"x", "reset": 1}),
    msgpack.packb({"instruction": "go", "rgb": b"x", "pickle": b"cos\nsystem\n"}),
    "a text",
]


@pytest.fixture(scope="module")
def navigator(tmp_path_factory):
    checkpoints = write_tiny_run(tmp_path_factory.mktemp("served")) / "run/checkpoints"
    made = Navigator.from_checkpoint(str(checkpoints), execute_horizon=2, memory_mb=1)
    made.jpeg_quality = 90
    return made


class Served:
    """A server in a thread of this process."""

    def __init__(self, navigator, token=None, **limits):
        self.server = PolicyServer(navigator, Limits(**limits), token)
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=[ready], daemon=True)
        self.thread.start()
        assert ready.wait(60)
        self.address = f"127.0.0.1:{self.server.port}"

    def _run(self, ready):
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(self.server.run("127.0.0.1", 0, ready.set))
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(self.task)

    def client(self, **options):
        return PolicyClient(f"ws://{self.address}", **options)

    def raw(self, **options):
        opened = connect(f"ws://{self.address}", **options).__enter__()
        opened.recv()
        return opened

    def get(self, path, **headers):
        request = urllib.request.Request(f"http://{self.address}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read().decode()

    def all_gone(self):
        end = time.monotonic() + 60
        while self.server.open and time.monotonic() < end:
            time.sleep(0.05)
        return self.server.open == 0

    def close(self):
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join(60)


@pytest.fixture
def serve(navigator):
    started = []

    def start(**options):
        started.append(Served(navigator, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


def frames(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(STEPS)]


def local(navigator, views, words):
    agent = VLNR1Agent(navigator)
    return [agent.act({"rgb": view, "instruction": words})["action"] for view in views]


def test_parallel_sessions_get_the_answers_of_the_local_policy_in_common_batches(navigator, serve):
    served = serve(batch_wait_ms=200)

    def walk(seed):
        with closing(served.client()) as client:
            return [client.act(view, WORDS[seed % 2]) for view in frames(seed)]

    with ThreadPoolExecutor(4) as pool:
        walks = list(pool.map(walk, range(4)))
    for seed, replies in enumerate(walks):
        assert [reply["action"] for reply in replies] == local(navigator, frames(seed), WORDS[seed % 2])
        assert [reply["asked"] for reply in replies] == [True, False] * 3 + [True]
        assert [reply["step"] for reply in replies] == list(range(STEPS))
        assert [len(reply["actions"]) for reply in replies[:3]] == [6, 5, 6]
        assert replies[1]["answer"] == replies[0]["answer"] == navigator.space.format(replies[0]["actions"])
    assert served.server.counts["answers"] == 16 and served.server.counts["batches"] < 12
    assert served.all_gone()


def test_jpeg_frames_resets_and_asking_anew(navigator, serve):
    served = serve(batch_wait_ms=0)
    jpegs = [encode_jpeg(view, 80) for view in frames(5)]
    seen = [decode_picture(jpeg) for jpeg in jpegs]
    with closing(served.client()) as client:
        about = client.about
        assert about["words"][1] == "Move forward 50 cm" and about["actions"] == ["stop", "forward", "left", "right"]
        assert (about["turn_angle"], about["num_actions"], about["execute_horizon"]) == (30, 6, 2)
        assert [client.act(jpeg, WORDS[0])["action"] for jpeg in jpegs] == local(navigator, seen, WORDS[0])
        client.reset()
        again = [client.act(jpeg, WORDS[0], ask=True) for jpeg in jpegs]
    assert [reply["step"] for reply in again] == list(range(STEPS)) and all(reply["asked"] for reply in again)


def test_openpis_client_packs_arrays_in_its_own_way(navigator, serve):
    view = frames(6)[0]
    array = {b"__ndarray__": True, b"data": view.tobytes(), b"dtype": view.dtype.str, b"shape": view.shape}
    with closing(serve().raw(additional_headers={"Authorization": "Api-Key unused"})) as socket:
        socket.send(msgpack.packb({"instruction": WORDS[0], "rgb": array}))
        assert msgpack.unpackb(socket.recv(60))["action"] == local(navigator, [view], WORDS[0])[0]
        socket.send(msgpack.packb({"reset": True}))
        assert msgpack.unpackb(socket.recv(60)) == {"reset": True}


def test_malformed_messages_get_a_line_and_leave_the_walk_as_it_was(navigator, serve):
    served = serve()
    views = frames(7)
    with closing(served.raw()) as socket:
        actions = []
        for view, bad in zip(views, [BAD[:3], BAD[3:6], BAD[6:9], BAD[9:12], BAD[12:14], BAD[14:], []], strict=True):
            for message in bad:
                socket.send(message)
                assert msgpack.unpackb(socket.recv(60)).keys() == {"error"}, message
            socket.send(msgpack.packb({"instruction": WORDS[0], "rgb": encode_jpeg(view, 95)}))
            actions.append(msgpack.unpackb(socket.recv(60))["action"])
    seen = [decode_picture(encode_jpeg(view, 95)) for view in views]
    assert actions == local(navigator, seen, WORDS[0])
    with closing(served.raw()) as socket:
        for _ in range(10):
            socket.send(b"\xc1")
        with pytest.raises(ConnectionClosed) as end:
            for _ in range(11):
                socket.recv(60)
    assert end.value.rcvd.code == 1008
    assert served.server.counts["mistakes"] == len(BAD) + 10 and served.server.counts["failures"] == 0


def kill(websocket):
    """As a process that dies: the connection is reset, nothing is said."""
    websocket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    websocket.socket.close()


def test_killed_clients_and_floods_leave_the_others_alone(navigator, serve):
    served = serve(idle_seconds=120)
    message = msgpack.packb({"instruction": WORDS[1], "rgb": encode_jpeg(frames(8)[0], 90), "ask": True})
    flooding = [served.raw() for _ in range(2)]
    stop = threading.Event()

    def flood(websocket):
        try:
            while not stop.is_set():
                websocket.send(message)  # and never looks at a reply
        except (ConnectionClosed, OSError):
            pass

    threads = [threading.Thread(target=flood, args=[websocket], daemon=True) for websocket in flooding]
    for thread in threads:
        thread.start()
    for _ in range(3):  # killed with a question under way
        victim = served.raw()
        victim.send(message)
        kill(victim)
    with closing(served.client(timeout=120)) as client:
        replies = [client.act(view, WORDS[0])["action"] for view in frames(9)]
    stop.set()
    for websocket in flooding:
        kill(websocket)
    assert replies == local(navigator, frames(9), WORDS[0])
    assert served.all_gone() and served.get("/healthz") == "OK\n"


def test_a_question_that_fails_is_that_sessions_alone(navigator, serve, monkeypatch):
    ask = navigator.ask

    def fails(walks):
        if any(walk.instruction == "break" for walk in walks):
            raise RuntimeError("no")
        return ask(walks)

    monkeypatch.setattr(navigator, "ask", fails)
    served = serve(batch_wait_ms=300)
    with ThreadPoolExecutor(2) as pool, closing(served.client()) as good, closing(served.client()) as bad:
        told = pool.submit(good.act, frames(1)[0], WORDS[0])
        with pytest.raises(ServerSaid, match=r"the server failed \(RuntimeError\); see its log"):
            bad.act(frames(1)[0], "break")
        assert told.result(60)["step"] == 0
        assert bad.act(frames(1)[1], WORDS[0])["step"] == 1
    assert served.server.counts["failures"] == 1


def test_limits(serve):
    served = serve(sessions=2, message_mb=0.05, megapixels=0.01, steps=2, idle_seconds=3)
    first, second = served.client(), served.client()
    with pytest.raises(InvalidStatus, match="503"):
        served.client()
    with pytest.raises(ServerSaid, match="a frame of 200 × 60 pixels; at most 10000"):
        first.act(encode_jpeg(np.zeros((60, 200, 3), np.uint8), 90), WORDS[0])
    with pytest.raises(ServerSaid, match="no such narrow ones"):
        first.act(encode_jpeg(np.zeros((2, 200, 3), np.uint8), 90), WORDS[0])
    for view in frames(1)[:2]:
        first.act(view, WORDS[0])
    with pytest.raises(ServerSaid, match="at most 2 steps: begin a new one with reset"):
        first.act(frames(1)[2], WORDS[0])
    first.reset()
    assert first.act(frames(1)[2], WORDS[0])["step"] == 0
    with pytest.raises(ServerSaid, match=r"one size: \[28, 56, 3\] came after"):
        first.act(np.zeros((28, 56, 3), np.uint8), WORDS[0])
    with pytest.raises(ConnectionClosed) as end:
        first.act(b"\xff" * 60_000, WORDS[0])
    assert end.value.rcvd.code == 1009
    with pytest.raises(ConnectionClosed) as end:
        second._receive()  # nothing was asked for three seconds
    assert end.value.rcvd.code == 1008 and "idle" in end.value.rcvd.reason
    assert served.all_gone()
    served.client().close()


def test_a_token_health_and_metrics(serve):
    served = serve(token="secret")
    for wrong in (None, "other", "secre", "sécret"):
        with pytest.raises(InvalidStatus, match="401"):
            served.client(token=wrong)
    assert served.get("/healthz") == "OK\n"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        served.get("/metrics")
    for kind in ("Bearer", "Api-Key"):
        served.raw(additional_headers={"Authorization": f"{kind} secret"}).close()
    with closing(served.client(token="secret")) as client:
        client.act(frames(1)[0], WORDS[0])
        text = served.get("/metrics", Authorization="Bearer secret")
    values = {name.removeprefix("vlnr1_"): float(value) for name, value in map(str.split, text.splitlines())}
    assert (values["answers_total"], values["sessions_total"], values["open_sessions"]) == (1, 3, 1)
    assert values["reply_seconds_total"] > 0 and values["refused_total"] == 5


def test_web_pages_may_not_ask(serve):
    with pytest.raises(InvalidStatus, match="403"):
        serve().raw(origin="https://somewhere.example")
