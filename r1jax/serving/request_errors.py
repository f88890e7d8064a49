"""Errors that a client gets, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that the client gets, in OpenAI's form."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def describe_error(error: ApiError) -> dict[str, Any]:
    """The error as JSON."""
    kind = KINDS.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}


def answer_error(error: ApiError, **headers: str) -> JSONResponse:
    """The answer to a request that failed."""
    headers |= {"Retry-After": "1"} if error.status == 429 else {}
    return JSONResponse(describe_error(error), error.status, headers)


def read_mistake(error: RequestValidationError) -> ApiError:
    """The error of a body that does not fit: the first field that is wrong."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{place}: {message}" if place else message, param=place or None)
