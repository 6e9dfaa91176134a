"""A chat model behind an address, asked by OpenAI's own client, which waits and tries again where that may help."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from habitat_vlnr1.errors import RunError, VLNR1Error

NO_KEY = "none"  # servers without keys take any


@dataclass(frozen=True)
class Reply:
    """What the model said, and the tokens of prompt and answer as the server counts them (0 where it does not)."""

    text: str
    tokens: int


class Endpoint:
    """Asks one model.

    Args:
        url: up to and without `/chat/completions`.
        model: its name there.
        key_variable: environment variable that has the key; it is read here, and neither logged nor stored.
        timeout: seconds until an answer is given up.
        tries: how often a question is sent at most: connections that fail, and replies 408, 409, 429 and 5xx, are
            tried again, later each time, or when the server says.
        place: of the keys in the config, for messages.

    Raises:
        ValueError: the address is none of http or https, or the client is not installed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60,
        tries: int = 4,
        place: str = "vlnr1.remote",
    ):
        if not url.startswith(("http://", "https://")):
            raise VLNR1Error(f"{place}.url is {url!r}: give an address, such as http://localhost:8000/v1")
        try:
            import openai
        except ImportError:
            raise VLNR1Error(f"{place} needs the client 'openai': pip install 'habitat-vlnr1[remote]'") from None
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        key = os.environ.get(key_variable) or NO_KEY
        self._client = openai.OpenAI(base_url=self.url, api_key=key, timeout=timeout, max_retries=tries - 1)

    def ask(self, messages: Sequence[dict[str, Any]], **options: Any) -> Reply:
        """One question.

        Args:
            messages: of OpenAI's chat form.
            options: of `chat.completions.create`, such as `max_tokens`.

        Raises:
            RunError: the endpoint cannot be reached, refuses, or replies in another form; one line says what to do.
        """
        import openai

        client: Any = self._client  # which has many overloads
        try:
            reply = client.chat.completions.create(model=self.model, messages=list(messages), **options)
            text, usage = reply.choices[0].message.content, reply.usage
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._refused(error, f"is the right key in ${self.key_variable}?") from None
        except openai.NotFoundError as error:
            raise self._refused(error, f"is {self.model!r} one of {self.url}/models?") from None
        except openai.APIStatusError as error:
            raise self._refused(error, "see the server's log") from None
        except openai.APIConnectionError as error:
            raise RunError(f"{self.url}: {error.__cause__ or error}: is the server up?") from None
        except (openai.APIError, AttributeError, IndexError, TypeError, ValueError):
            raise RunError(f"{self.url}: no chat completion came back; does the address end before /chat?") from None
        return Reply(text or "", usage.total_tokens if usage else 0)

    def _refused(self, error: Any, remedy: str) -> RunError:
        said = " ".join(str(error.message).split())
        return RunError(f"{self.url}: {error.status_code} ({said[:200]}); {remedy}")


class Allowance:
    """A cap on what a run may cost, for threads.

    Args:
        requests: at most so many; None: no matter.
        tokens: of prompts and answers; no question is sent once they are used up. None: no matter.
        remedy: what to do when it is.
    """

    def __init__(self, requests: int | None, tokens: int | None, remedy: str):
        self.requests, self.tokens, self.remedy = requests, tokens, remedy
        self.asked = self.used = 0
        self._lock = threading.Lock()

    def take(self) -> None:
        """Before a question.

        Raises:
            RunError: none may be asked any more.
        """
        with self._lock:
            if self.requests is not None and self.asked >= self.requests:
                raise RunError(f"vlnr1.remote.max_requests: {self.asked} questions were asked; {self.remedy}")
            if self.tokens is not None and self.used >= self.tokens:
                raise RunError(f"vlnr1.remote.max_total_tokens: {self.used} tokens were used; {self.remedy}")
            self.asked += 1

    def use(self, tokens: int) -> None:
        """After an answer."""
        with self._lock:
            self.used += tokens
