"""What a request is refused with: a status, one sentence, and headers. All bodies have the shape of OpenAI's errors."""

import json

from bertgpt.inference.class_scores import TooLong
from bertgpt.types import UserError

TYPES = {
    401: "authentication_error", 404: "not_found_error", 405: "invalid_request_error", 429: "rate_limit_error",
    499: "client_closed_request", 500: "internal_error", 503: "unavailable_error", 504: "timeout_error",
}  # fmt: skip
"""status → type of the error; others are mistakes in the request"""


class Refusal(Exception):
    """A request that is not answered. `headers` go with the answer, `param` is the field that is to blame."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.headers, self.param = status, message, headers or {}, param


def error_body(refusal: Refusal) -> bytes:
    """The body of the answer."""
    kind = TYPES.get(refusal.status, "invalid_request_error")
    error = {"message": refusal.message, "type": kind, "code": refusal.status, "param": refusal.param}
    return json.dumps({"error": error}).encode()


def as_refusal(error: Exception) -> Refusal:
    """The refusal for any error of a handler. What nobody expected is a fault of ours, without its details."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TooLong):
        return Refusal(413, f"{error}; truncate drops the rest")
    if isinstance(error, UserError):
        return Refusal(400, " ".join(str(error).split()))
    if isinstance(error, TimeoutError):
        return Refusal(504, "the request took longer than the server allows")
    return Refusal(500, "a fault of the server, which its log describes")
