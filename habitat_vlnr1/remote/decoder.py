"""Asks a model behind an endpoint what `lvlm.decoding` asks one in this process.

The same words and frames go out, as chat messages with pictures in them; the chat template and what scales pictures
are the server's. Where the server can be told what an answer looks like, it is held to the action grammar; else the
answer is parsed, and counted as invalid where it breaks it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from habitat_vlnr1.actions import SEPARATOR, Action, ActionSpace
from habitat_vlnr1.errors import VLNR1Error
from habitat_vlnr1.files import write_atomically
from habitat_vlnr1.lvlm.decoding import Answer, Prompt
from habitat_vlnr1.prompt import PromptTemplate
from habitat_vlnr1.remote.endpoint import Allowance, Endpoint

GRAMMARS = ("vllm", "sglang", "json")
JPEG_QUALITY = 95
_MARKER = re.compile(r"<(?=\|)")


@dataclass(frozen=True)
class Asking:
    """How an endpoint is asked: `vlnr1.remote` without address and limits.

    Args:
        grammar: how the server is told the answer's form: `vllm` (`structured_outputs.regex`), `sglang` (`regex`),
            `json` (`response_format` with a JSON schema, as hosted models take it); None: not at all.
        image: `png` (exact) or `jpeg` (smaller) pictures.
        max_tokens: of an answer.
        in_flight: questions on their way at once.
        cache: folder with a file for each answer ever given; None: none.
    """

    grammar: str | None = None
    image: str = "png"
    max_tokens: int = 256
    in_flight: int = 16
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.grammar not in (None, *GRAMMARS):
            raise VLNR1Error(f"vlnr1.remote.grammar is {self.grammar!r}: give one of {', '.join(GRAMMARS)}, or null")
        if self.image not in ("png", "jpeg"):
            raise VLNR1Error(f"vlnr1.remote.image is {self.image!r}: give png or jpeg")


class RemoteDecoder:
    """Answers prompts through an endpoint.

    Args:
        endpoint: asks the model.
        template: how it is asked.
        space: what the actions are.
        num_actions: n.
        asking: the rest.
        allowance: what may be asked in all.
        temperature: 0: greedy.
        seed: of what is drawn at a temperature; the server need not heed it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        template: PromptTemplate,
        space: ActionSpace,
        num_actions: int,
        asking: Asking,
        allowance: Allowance,
        temperature: float = 0.0,
        seed: int = 0,
    ):
        self.endpoint, self.template, self.space, self.num_actions = endpoint, template, space, num_actions
        self.asking, self.allowance = asking, allowance
        self.temperature, self.seed = temperature, seed

    @property
    def identity(self) -> dict[str, Any]:
        """What answers depend on. The address is not in it: a server may move."""
        drawn = {"temperature": self.temperature, "seed": self.seed} if self.temperature else {}
        asking = {"grammar": self.asking.grammar, "image": self.asking.image, "max_tokens": self.asking.max_tokens}
        return {"template": self.template.name, **asking, **drawn}

    def decode(self, prompts: Sequence[Prompt], seeds: Sequence[tuple[int, ...]] | None = None) -> list[Answer]:
        """An answer to each prompt; all are on their way at once, as far as `in_flight` goes.

        Args:
            seeds: of each prompt, for a temperature; None: the decoder's.

        Raises:
            RunError: the endpoint fails, or nothing may be asked any more. Answers that have come are kept.
        """
        bodies = [
            self._body(prompt, seeds[number] if seeds else (self.seed,)) for number, prompt in enumerate(prompts)
        ]
        with ThreadPoolExecutor(min(self.asking.in_flight, max(1, len(bodies)))) as pool:
            return [self._read(text) for text in pool.map(self._text, bodies)]

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """A prompt in OpenAI's chat form, its frames as data URLs."""
        instruction = _MARKER.sub("< ", prompt.instruction)  # chat markers in it would be the server's own
        told = self.template.messages(instruction, len(prompt.frames) - 1, self.num_actions, self.space)
        frames = iter(prompt.frames)
        return [
            {**message, "content": [self._part(part, frames) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in told
        ]

    def _part(self, part: dict[str, Any], frames: Any) -> dict[str, Any]:
        if part["type"] != "image":
            return part
        return {"type": "image_url", "image_url": {"url": self._url(next(frames))}}

    def _url(self, frame: Any) -> str:
        file, kind = io.BytesIO(), self.asking.image
        Image.fromarray(np.asarray(frame, dtype=np.uint8)).save(file, kind, quality=JPEG_QUALITY)
        return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"

    def _body(self, prompt: Prompt, seed: tuple[int, ...]) -> dict[str, Any]:
        """All that decides an answer, beside the model."""
        body = {"messages": self.messages(prompt), "max_tokens": self.asking.max_tokens}
        body |= {"temperature": self.temperature, **self._form()}
        if self.temperature:
            body["seed"] = int(hashlib.sha256(repr(seed).encode()).hexdigest()[:8], 16) // 2  # a positive int32
        return body

    def _form(self) -> dict[str, Any]:
        """What tells the server how an answer looks."""
        if self.asking.grammar is None:
            return {}
        if self.asking.grammar == "json":
            return {"response_format": {"type": "json_schema", "json_schema": self._schema()}}
        regex = {"regex": answer_pattern(self.space, self.num_actions)}
        return {"extra_body": {"structured_outputs": regex} if self.asking.grammar == "vllm" else regex}

    def _schema(self) -> dict[str, Any]:
        actions = {"type": "array", "items": {"type": "string", "enum": self.space.options()}}
        fixed = {"minItems": self.num_actions, "maxItems": self.num_actions}
        whole = {"type": "object", "properties": {"actions": {**actions, **fixed}}, "required": ["actions"]}
        return {"name": "answer", "strict": True, "schema": {**whole, "additionalProperties": False}}

    def _text(self, body: dict[str, Any]) -> str:
        """The model's answer, from the cache where it has been given before."""
        file = self._file(body)
        known = read_answer_file(file) if file else None
        if known is not None:
            return known
        self.allowance.take()
        reply = self.endpoint.ask(**body)
        self.allowance.use(reply.tokens)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps({"model": self.endpoint.model, "text": reply.text}).encode())
        return reply.text

    def _file(self, body: dict[str, Any]) -> Path | None:
        if self.asking.cache is None:
            return None
        whole = json.dumps({"model": self.endpoint.model, **body}, sort_keys=True)
        name = hashlib.sha256(whole.encode()).hexdigest()
        return Path(self.asking.cache) / name[:2] / f"{name[2:]}.json"

    def _read(self, text: str) -> Answer:
        if self.asking.grammar == "json":
            text = _phrases(text)
        actions, valid = self.space.read(text, self.num_actions)
        return Answer(actions, text, (), (), (), valid)


def answer_pattern(space: ActionSpace, n: int) -> str:
    """A regular expression of all answers of n actions: behind a STOP there are only STOPs."""
    stop = re.escape(space.phrase(Action.STOP))
    moves = [re.escape(space.phrase(action)) for action in Action if action is not Action.STOP]
    move = f"({'|'.join(moves)})"
    some = [SEPARATOR.join([move] * k + [stop] * (n - k)) for k in range(n + 1)]
    return f"({'|'.join(some)})"


def read_answer_file(file: Path) -> str | None:
    """A kept answer; None where there is none, or a file that is none."""
    try:
        text = json.loads(file.read_bytes())["text"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _phrases(text: str) -> str:
    """`'{"actions": ["A. …", …]}'` in the words of an answer; any other text as it is."""
    try:
        actions = json.loads(text)["actions"]
    except (ValueError, KeyError, TypeError):
        return text
    return SEPARATOR.join(map(str, actions)) if isinstance(actions, list) else text
