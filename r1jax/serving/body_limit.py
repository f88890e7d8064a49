"""A limit on the size of requests, in place before a body is read."""

from __future__ import annotations

from typing import Any

from r1jax.serving.request_errors import ApiError, answer_error

MOST_BYTES = 8 << 20


class BodyLimit:
    """ASGI middleware: answers 413 to a body of more than `most` bytes, whether it says its size or not."""

    def __init__(self, app: Any, most: int = MOST_BYTES):
        self._app, self._most = app, most
        self._refusal = answer_error(ApiError(413, f"a request must have at most {most} bytes"), connection="close")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self._most:
            await self._refusal(scope, receive, send)
            return
        size, begun, refused = 0, False, False

        async def receive_some() -> Any:
            nonlocal size, refused
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._most:
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def send_some(message: Any) -> None:
            nonlocal begun
            if not refused:
                begun = True
                await send(message)

        try:
            await self._app(scope, receive_some, send_some)
        except Exception:
            if not refused:
                raise
        if refused and not begun:
            await self._refusal(scope, receive, send)
