"""`generate(prompts) -> texts` by an OpenAI-compatible server: POST {url}/chat/completions, with the standard library.

Made for rewards: a failed request costs a reward, never the run. Each request has one deadline in total (a server that
sends a byte a second cannot extend it), a limit on the reply's size, and a few retries with growing pauses for
temporary failures (no connection, 408, 409, 429, 5xx; `Retry-After` is honoured up to a limit). A request that still
fails, or whose reply is not a chat completion, gives None. Only errors of the config raise: a wrong address, a rejected
key, an unknown model, as long as the server has not answered any request.

Left out: streaming, proxies, batching on the server's side.
"""

import contextlib
import http.client
import ipaddress
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from r1jax.core.errors import UserError
from r1jax.rewards.completions import Completion

_RETRIED = frozenset((408, 409, 425, 429))
_WRONG_CONFIG = frozenset((401, 403, 404, 405))
_MOST_REFUSED = 20  # requests refused for other reasons before any was answered
_MAX_REPLY_BYTES = 4 << 20
_MAX_PAUSE_SECONDS = 30.0

_logger = logging.getLogger(__name__)


@dataclass
class _History:
    """Whether a server has ever answered, and how many requests it refused."""

    answered: bool = False
    refused: int = 0
    warned: bool = False


@dataclass(frozen=True)
class Endpoint:
    """A server and its request settings; call it with prompts. The key is read from the environment variable
    `key_variable`, never from a config, and is sent only to https addresses and to this machine.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 60.0
    retries: int = 2
    pause_seconds: float = 1.0
    parallel: int = 8
    max_tokens: int = 1024
    temperature: float = 0.0
    _history: _History = field(default_factory=_History, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username is not None or parts.password is not None:
            raise UserError(
                f"endpoint must not hold a user or password, which would stand in config.json and logs (host "
                f"{parts.hostname}): put the key into the environment variable {self.key_variable} (key_variable)"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"endpoint must be an address such as http://localhost:8000/v1, got {self.url!r}")
        if parts.query or parts.fragment:
            raise UserError(
                f"endpoint must be an address without ? and #, such as {parts.scheme}://{parts.hostname}/v1"
            )
        if not self.model:
            raise UserError("an endpoint needs model, the name of a model that its server knows")

    def _find_key(self) -> str:
        """The key to send; "" if there is none, or if others on the network could read it. Raises UserError for a key
        that cannot be sent, without showing it.
        """
        parts = urlsplit(self.url)
        key = os.environ.get(self.key_variable, "").strip()
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise UserError(
                f"the key in the variable {self.key_variable} must be one word of printable ASCII characters"
            )
        if key and parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
            if not self._history.warned:
                self._history.warned = True
                _logger.warning(
                    "%s: the key in %s is sent only to https addresses and to this machine", self.url, self.key_variable
                )
            return ""
        return key

    def __call__(self, prompts: Sequence[Completion]) -> list[str | None]:
        """One reply per prompt, in order; None for a failed request. Raises UserError for errors of the config."""
        with ThreadPoolExecutor(max(1, self.parallel)) as pool:
            return list(pool.map(self._ask, prompts))

    def _ask(self, prompt: Completion) -> str | None:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        asked = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        body = json.dumps(asked | {"temperature": self.temperature}).encode()
        for attempt in range(self.retries + 1):
            pause = self.pause_seconds * 2**attempt
            try:
                status, wait, reply = self._post(body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    self._history.answered = True
                    text = _read_reply(reply)
                    if text is None:
                        _logger.warning(
                            "%s replied with something other than a chat completion: %.80r", self.url, reply
                        )
                    return text
                problem = f"status {status}: {reply[:200].decode(errors='replace')!r}"
                if status < 500 and status not in _RETRIED:
                    self._refuse(status, problem)
                    break
                pause = max(pause, wait)
            if attempt < self.retries:
                time.sleep(min(pause, _MAX_PAUSE_SECONDS))
        _logger.warning("%s gave no reply: %s", self.url, problem)
        return None

    def _refuse(self, status: int, problem: str) -> None:
        """Raises UserError for a refusal that the config causes. Once a request was answered, no refusal is: a gateway
        says 404 while its server restarts, and a firewall 403 because of a text.
        """
        self._history.refused += 1
        if not self._history.answered and (
            status in _WRONG_CONFIG or status < 400 or self._history.refused >= _MOST_REFUSED
        ):
            raise UserError(
                f"endpoint {self.url} rejects model {self.model!r}, {problem}; "
                f"check endpoint, model and the key in {self.key_variable}"
            )

    def _post(self, body: bytes) -> tuple[int, float, bytes]:
        """Status, requested pause in seconds and reply of one request, within the deadline."""
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=self.timeout_seconds, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self.timeout_seconds)
        headers = {"Content-Type": "application/json"}
        if key := self._find_key():
            headers["Authorization"] = f"Bearer {key}"
        # Unlike a socket's own timeout, this one does not restart with each byte.
        connection.connect()
        guard = threading.Timer(self.timeout_seconds, _hang_up, (connection.sock,))
        guard.daemon = True
        guard.start()
        try:
            connection.request("POST", f"{parts.path.rstrip('/')}/chat/completions", body, headers)
            response = connection.getresponse()
            reply = response.read(_MAX_REPLY_BYTES + 1)
            if len(reply) > _MAX_REPLY_BYTES:
                raise ValueError(f"a reply of more than {_MAX_REPLY_BYTES} bytes")
            return response.status, _seconds(response.getheader("Retry-After")), reply
        finally:
            guard.cancel()
            connection.close()


# Those of a reward's arguments that are an endpoint's, besides its address and the name of the model.
SERVER_FIELDS = [each.name for each in fields(Endpoint) if each.init and each.name not in ("url", "model")]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _read_reply(reply: bytes) -> str | None:
    """The text of a chat completion, or None if the reply is not one."""
    try:
        content: Any = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return content if isinstance(content, str) else None
