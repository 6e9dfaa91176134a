"""Queries a second of the policy server by the number of sessions, batched and one after the other, as JSON.

    .venv/bin/python benchmarks/serving.py --sessions 1 2 4 8

Server and clients are processes of this machine. Every client walks an exported episode and asks at each frame; the
ratio is that of the same server with `batch: 1`, which asks the model about one session after the other.
"""

import argparse
import json
import multiprocessing
import os
import time
from contextlib import closing
from typing import Any

from habitat_vlnr1.frame_files import read_picture
from habitat_vlnr1.records import VLNEgo


def serve(checkpoint: str, batch: int, port: Any) -> None:
    """A server's process; `port` gets where it listens."""
    import asyncio

    import torch

    from habitat_vlnr1.agent import Navigator
    from habitat_vlnr1.serving.server import Limits, PolicyServer

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    server = PolicyServer(Navigator.from_checkpoint(checkpoint), Limits(sessions=64, batch=batch))
    asyncio.run(server.run("127.0.0.1", 0, lambda: port.put(server.port)))


def walk(port: int, export: str, number: int, seconds: float, begin: Any, asked: Any) -> None:
    """A client's process: asks for so long, with JPEG frames, and tells how often it was answered."""
    from habitat_vlnr1.serving.client import PolicyClient

    ego = VLNEgo(export)
    episode = ego.episodes[number % len(ego.episodes)]
    frames = [read_picture(ego.root / episode.frame(step)) for step in range(len(episode.actions))]
    with closing(PolicyClient(f"ws://127.0.0.1:{port}")) as client:
        client.act(frames[0], episode.instruction)
        begin.wait()
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            if count % len(frames) == 0:
                client.reset()
            client.act(frames[count % len(frames)], episode.instruction, ask=True)
            count += 1
    asked.put(count)


def rate(context: Any, port: int, options: argparse.Namespace, sessions: int) -> float:
    """Queries a second of so many sessions together."""
    begin, asked = context.Barrier(sessions), context.Queue()
    arguments = [(port, options.export, number, options.seconds, begin, asked) for number in range(sessions)]
    clients = [context.Process(target=walk, args=own) for own in arguments]
    for client in clients:
        client.start()
    count = sum(asked.get() for _ in clients)
    for client in clients:
        client.join()
    return count / options.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="data/vlnr1/quickstart/checkpoints", help="folder, run or hub id")
    parser.add_argument("--export", default="data/vln_ego/embedded/train", help="where frames come from")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of sessions")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    servers, ports = [], []
    for batch in (32, 1):
        port = context.Queue()
        servers.append(context.Process(target=serve, args=(options.checkpoint, batch, port), daemon=True))
        servers[-1].start()
        ports.append(port.get())
    rows = []
    for sessions in options.sessions:
        together, alone = (round(rate(context, port, options, sessions), 2) for port in ports)
        ratio = round(together / alone, 2)
        rows.append({"sessions": sessions, "batched": together, "one_by_one": alone, "ratio": ratio})
    print(json.dumps({"queries_per_second": rows, "seconds": options.seconds, "load": os.getloadavg()[0]}, indent=2))
    for server in servers:
        server.terminate()


if __name__ == "__main__":
    main()
