"""A client of the policy server, for a robot or another simulator: no torch, nothing of this package.

Copy this file. It needs `pip install websockets msgpack`, and NumPy where frames are arrays:

    python client.py --instruction "Stop at the red sofa." walk/0.jpg walk/1.jpg walk/2.jpg
"""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

import msgpack
from websockets.sync.client import connect


class ServerSaid(RuntimeError):
    """The server did not take a message; the walk there is as before."""


class PolicyClient:
    """One session: one walk at a time.

    Args:
        address: the server's.
        token: where it asks for one; None: what VLNR1_TOKEN has, if anything.
        timeout: seconds to wait for the connection and for each reply.

    Attributes:
        about: what the server says of itself: the actions' words, metres and degrees, and its limits.
    """

    def __init__(self, address: str = "ws://localhost:8000", token: str | None = None, timeout: float = 60):
        token = token or os.environ.get("VLNR1_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(
            connect(address, additional_headers=headers, compression=None, open_timeout=timeout)
        )
        self._timeout, self._reset = timeout, False
        self.about: dict[str, Any] = self._receive()

    def reset(self) -> None:
        """A new walk begins with the next frame."""
        self._reset = True

    def act(self, rgb: Any, instruction: str, ask: bool = False) -> dict[str, Any]:
        """Show the next step's view and get what to do.

        Args:
            rgb: the bytes of a JPEG or PNG, or a uint8 array [H, W, 3].
            instruction: what the agent is told.
            ask: ask the model now, whatever is left of its last answer.

        Returns:
            `action` (0 stop, 1 forward, 2 left, 3 right), `actions` from now on, the `answer` that they are of,
            whether the model was `asked`, and the `step`.

        Raises:
            ServerSaid: the server did not take it.
            websockets.exceptions.ConnectionClosed: the session has ended.
            TimeoutError: there was no reply.
        """
        if not isinstance(rgb, bytes):
            rgb = {"data": rgb.tobytes(), "shape": list(rgb.shape), "dtype": rgb.dtype.str}
        message = {"instruction": instruction, "rgb": rgb, "reset": self._reset, "ask": ask}
        self._socket.send(msgpack.packb(message))
        reply = self._receive()
        if "error" in reply:
            raise ServerSaid(reply["error"])
        self._reset = False
        return reply

    def _receive(self) -> dict[str, Any]:
        return msgpack.unpackb(self._socket.recv(self._timeout))

    def close(self) -> None:
        """End the session."""
        self._open.close()


def main() -> None:
    """Ask about the images of a walk."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("frames", nargs="+", help="a walk's images in order of time, one per step")
    parser.add_argument("--instruction", required=True, help="what the agent is told")
    parser.add_argument("--address", default="ws://localhost:8000", help="the server's")
    options = parser.parse_args()
    with contextlib.closing(PolicyClient(options.address)) as client:
        for name in options.frames:
            with open(name, "rb") as file:
                reply = client.act(file.read(), options.instruction)
            print(f"{name}: {client.about['words'][reply['action']]}")


if __name__ == "__main__":
    main()
