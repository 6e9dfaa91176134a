"""The policy server: WebSockets, a session per connection, all sessions' questions batched together.

A session is a connection: it has one walk's memory, which is gone when the connection is. What a client sends is
looked at in threads; the model is asked by one thread, about all walks that wait. See docs/serving.md.
"""

from __future__ import annotations

import asyncio
import hmac
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as Handshake
from websockets.http11 import Response

from habitat_vlnr1 import __version__
from habitat_vlnr1.actions import Action
from habitat_vlnr1.agent import Navigator, Step, Walk
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.serving.messages import PROTOCOL, Request, RequestError, pack, read_request

MOST_MISTAKES = 10
"""Messages one after another that are none, after which a connection is closed."""
COUNTED = ("sessions", "refused", "requests", "mistakes", "answers", "batches", "failures")


@dataclass(frozen=True)
class Limits:
    """What clients may take.

    Args:
        sessions: at a time.
        message_mb: MB of one message.
        megapixels: of one frame.
        steps: frames of one walk.
        idle_seconds: without a message, or with a reply that is not taken, after which a session ends.
        batch: walks that the model is asked about at once.
        batch_wait_ms: how long the first of a batch waits for others.
    """

    sessions: int = 16
    message_mb: float = 4
    megapixels: float = 4
    steps: int = 2000
    idle_seconds: float = 300
    batch: int = 32
    batch_wait_ms: float = 5


class Batcher:
    """Asks the model about all walks that wait, one batch after the other.

    Args:
        navigator: decides.
        limits: how many, and how long they wait for each other.
        counts: where batches and answers are counted.
    """

    def __init__(self, navigator: Navigator, limits: Limits, counts: Counter[str]):
        self.navigator, self.limits, self.counts = navigator, limits, counts
        self._waiting: asyncio.Queue[tuple[Walk, asyncio.Future[Step]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model")

    async def decide(self, walk: Walk) -> Step:
        """What the model says at the walk's newest frame."""
        future: asyncio.Future[Step] = asyncio.get_running_loop().create_future()
        await self._waiting.put((walk, future))
        return await future

    async def run(self) -> None:
        """Serve `decide`, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            if self.limits.batch > 1 and self.limits.batch_wait_ms:
                await asyncio.sleep(self.limits.batch_wait_ms / 1000)
            while len(batch) < self.limits.batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            decided = await loop.run_in_executor(self._thread, self._decide, [walk for walk, _ in batch])
            for (_, future), step in zip(batch, decided, strict=True):
                if future.done():
                    continue
                if isinstance(step, Exception):
                    future.set_exception(step)
                else:
                    future.set_result(step)
            self.counts["batches"] += 1
            self.counts["answers"] += len(batch)

    def _decide(self, walks: Sequence[Walk]) -> list[Step | Exception]:
        """Together; each alone where that fails, so that one walk's trouble is not the others'."""
        try:
            self.navigator.ask(walks)
            steps: list[Any] = self.navigator.decide(walks)
            return steps
        except Exception as error:
            if len(walks) == 1:
                return [error]
            return [step for walk in walks for step in self._decide([walk])]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class PolicyServer:
    """Serves a navigator.

    Args:
        navigator: decides; its `memory_mb` is each session's.
        limits: what clients may take.
        token: what they must send as `Authorization: Bearer <token>` (or `Api-Key <token>`, as openpi's do); None:
            nothing is asked for.

    Attributes:
        counts: what was done so far, as `/metrics` tells.
        port: that it listens on, once it does.
    """

    def __init__(self, navigator: Navigator, limits: Limits | None = None, token: str | None = None):
        self.navigator, self.limits, self.token = navigator, limits or Limits(), token
        self.counts: Counter[str] = Counter()
        self.open = 0
        self.port: int | None = None
        self._batcher = Batcher(navigator, self.limits, self.counts)
        self._busy = 0.0

    async def run(self, host: str, port: int, ready: Callable[[], None] | None = None) -> None:
        """Listen until the process is told to end (SIGINT, SIGTERM), or the task is cancelled.

        Args:
            ready: called once it listens.

        Raises:
            VLNR1Error: it cannot listen there.
        """
        model = asyncio.create_task(self._batcher.run())
        try:
            async with serve(
                self._session,
                host,
                port,
                process_request=self._admit,
                origins=[None],  # no web page that somebody looks at here may ask in their name
                compression=None,
                max_size=int(self.limits.message_mb * 1e6),
                max_queue=2,  # of a client that floods the rest waits in its own connection
            ) as server:
                self.port = next(iter(server.sockets)).getsockname()[1]
                with suppress(NotImplementedError, RuntimeError, ValueError):  # signals reach the main thread only
                    for number in (signal.SIGINT, signal.SIGTERM):
                        asyncio.get_running_loop().add_signal_handler(number, server.close)
                if ready:
                    ready()
                await server.wait_closed()
        except OSError as error:
            raise VLNR1Error(f"cannot listen on {host}:{port} ({error.strerror}): choose another port") from None
        finally:
            model.cancel()
            self._batcher.close()

    def _admit(self, connection: ServerConnection, request: Handshake) -> Response | None:
        """Answers to `/healthz` and `/metrics`; None: a session may begin."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._is_allowed(request.headers.get("Authorization", "")):
            self.counts["refused"] += 1
            return connection.respond(HTTPStatus.UNAUTHORIZED, "a token is asked for: Authorization: Bearer …\n")
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics())
        if self.open >= self.limits.sessions:
            self.counts["refused"] += 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"all {self.limits.sessions} sessions taken\n")
        return None

    def _is_allowed(self, sent: str) -> bool:
        kind, _, token = sent.partition(" ")
        known = kind.lower() in ("bearer", "api-key") and token
        return self.token is None or bool(known and hmac.compare_digest(token.encode(), self.token.encode()))

    def metrics(self) -> str:
        """Counts in Prometheus' text format."""
        lines = [f"vlnr1_{name}_total {self.counts[name]}" for name in COUNTED]
        lines += [f"vlnr1_open_sessions {self.open}", f"vlnr1_reply_seconds_total {self._busy:.3f}"]
        return "\n".join(lines) + "\n"

    @property
    def greeting(self) -> dict[str, Any]:
        """What a client is told first."""
        space, limits = self.navigator.space, self.limits
        return {
            "protocol": PROTOCOL,
            "server": f"habitat-vlnr1 {__version__}",
            "actions": [action.name.lower() for action in Action],
            "words": [space.describe(action) for action in Action],
            "forward_step": space.forward_step,
            "turn_angle": space.turn_angle,
            "num_actions": self.navigator.decoder.num_actions,
            "execute_horizon": self.navigator.execute_horizon,
            "message_mb": limits.message_mb,
            "megapixels": limits.megapixels,
            "steps": limits.steps,
            "idle_seconds": limits.idle_seconds,
        }

    async def _session(self, connection: ServerConnection) -> None:
        if self.open >= self.limits.sessions:  # two may have been admitted at once
            self.counts["refused"] += 1
            await connection.close(1013, "all sessions taken")
            return
        self.open += 1
        self.counts["sessions"] += 1
        session = Session(self.navigator, self._batcher, self.limits)
        try:
            await connection.send(pack(self.greeting))
            await self._converse(connection, session)
        except TimeoutError:
            await connection.close(1008, f"idle for {self.limits.idle_seconds:g} seconds")
        except ConnectionClosed:
            pass
        finally:
            self.open -= 1
            session.close()

    async def _converse(self, connection: ServerConnection, session: Session) -> None:
        mistakes = 0
        while mistakes < MOST_MISTAKES:
            content = await asyncio.wait_for(connection.recv(), self.limits.idle_seconds)
            self.counts["requests"] += 1
            began = time.monotonic()
            try:
                reply, mistakes = await session.reply(content), 0
            except VLNR1Error as error:
                reply, mistakes = {"error": str(error)}, mistakes + 1
                self.counts["mistakes"] += 1
            except Exception as error:  # of the model: this session is told, the others go on
                reply = {"error": f"the server failed ({type(error).__name__}); see its log"}
                self.counts["failures"] += 1
                connection.logger.error("a question failed", exc_info=error)
            self._busy += time.monotonic() - began
            await asyncio.wait_for(connection.send(pack(reply)), self.limits.idle_seconds)
        await connection.close(1008, f"{MOST_MISTAKES} messages in a row that are none")


class Session:
    """A connection's walk."""

    def __init__(self, navigator: Navigator, batcher: Batcher, limits: Limits):
        self.navigator, self.batcher, self.limits = navigator, batcher, limits
        self.walk = navigator.begin()

    async def reply(self, content: bytes | str) -> dict[str, Any]:
        """To one message.

        Raises:
            VLNR1Error: it is none; the walk is as before.
        """
        request = await asyncio.to_thread(read_request, content, int(self.limits.megapixels * 1e6))
        if request.reset:
            self.walk.close()
            self.walk = self.navigator.begin()
        if request.frame is None:
            return {"reset": True}
        await asyncio.to_thread(self._see, request)
        planned = None if request.ask else self.walk.planned()
        step = planned or await self.batcher.decide(self.walk)
        ahead = step.answer.actions[step.number :]
        return {
            "action": int(step.action),
            "actions": [int(action) for action in ahead],
            "answer": step.answer.text,
            "asked": planned is None,
            "step": self.walk.frames - 1,
        }

    def _see(self, request: Request) -> None:
        if self.walk.frames >= self.limits.steps:
            raise RequestError(f"a walk has at most {self.limits.steps} steps: begin a new one with reset")
        assert request.frame is not None
        self.walk.see(request.frame, request.instruction)

    def close(self) -> None:
        """Forget everything."""
        self.walk.close()
