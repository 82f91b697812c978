"""The REST service: a thin caller of ``app.batches``.

Owns the way from a request to a verb and back: who asks (a bearer token names the actor of the
audit), what is asked, and which status an error is.  The invariants: nothing is answered without a
token but "who are you"; an error carries a code and no more than the command line would show; what
a client sends is bounded before it is read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from duly.admin.cli.output import plain, when
from duly.admin.web.operations import OPERATIONS, VERBS, Operation, openapi
from duly.admin.web.tokens import Tokens
from duly.errors import (
    DulyError,
    MissingExtraError,
    NotFoundError,
    OutcomeUnknownError,
    RetryableError,
    RunActiveError,
    WrongStatusError,
)
from duly.outbox.operator import By

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    from duly.app import App
    from duly.batch.runs import RunRow
    from duly.batch.service import Batches

__all__ = ["make_service"]

BODY_BYTES_MAX = 64 * 1024
BODY_SECONDS = 10.0
VERIFY_SECONDS = 3_600.0

Answer = dict[str, Any]


class _RefusedError(Exception):
    """The request itself is wrong."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail


def make_service(app: App, tokens: Tokens) -> Starlette:
    """The service of an App as an ASGI application: serve it with uvicorn, or mount it.

    Raises MissingExtraError without Starlette.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtraError("starlette", "web") from error
    service = _Service(app, tokens)
    routes = [
        Route(one.path, partial(service.answer, one), methods=[one.method.upper()])
        for one in OPERATIONS
    ]
    routes.append(Route("/openapi.json", service.document, methods=["GET"]))
    return Starlette(routes=routes, exception_handlers={404: _lost, 405: _lost})


class _Service:
    """Carries operations out."""

    def __init__(self, app: App, tokens: Tokens) -> None:
        self._app, self._tokens = app, tokens

    async def document(self, request: Request) -> JSONResponse:
        """The OpenAPI document."""
        if self._tokens.actor(request.headers.get("authorization")) is None:
            return _unknown()
        return _json(openapi())

    async def answer(self, operation: Operation, request: Request) -> JSONResponse:
        """One request."""
        actor = self._tokens.actor(request.headers.get("authorization"))
        if actor is None:
            return _unknown()
        try:
            body = await _body(request, operation)
            return _json(
                await self._carry_out(
                    operation, request, By(actor, body.pop("reason", "")), body=body
                )
            )
        except _RefusedError as error:
            return _error(error.status, error.code, error.detail)
        except RunActiveError as error:
            more = {"owner": error.owner, "heartbeat_age_seconds": error.age_seconds}
            return _error(409, error.code, error.detail, **more)
        except DulyError as error:
            return _error(_status(error), error.code, error.detail)
        except TimeoutError:
            return _error(503, "TIMEOUT", "it took too long")

    async def _carry_out(
        self, operation: Operation, request: Request, by: By, *, body: dict[str, Any]
    ) -> Answer:
        batches, name = self._app.batches, operation.name
        if name == "verify":
            async with asyncio.timeout(VERIFY_SECONDS):
                found = await batches.verify(request.path_params["instance"])
            return {"ok": not found, "differences": found}
        key = request.headers.get("idempotency-key", "")
        given = {**request.path_params, **_query(request, operation), **body}
        return await asyncio.to_thread(_do, name, _Asked(batches, given, by, key))


class _Asked(NamedTuple):
    """One request, understood. given: of path, query and body; key: of idempotence, if any."""

    batches: Batches
    given: Mapping[str, Any]
    by: By
    key: str


def _do(name: str, asked: _Asked) -> Answer:
    if name not in VERBS:
        return _OTHERS[name](asked)
    more = {"from_step": asked.given.get("from_step", "")} if name == "rerun" else {}
    verb = getattr(asked.batches, name)
    return _plain(verb(asked.given["instance"], by=asked.by, request=asked.key, **more))


def _jobs(asked: _Asked) -> Answer:
    found = asked.batches.jobs()
    return {"jobs": [{**_plain(one), "next_at": _time(one.next_at)} for one in found]}


def _runs(asked: _Asked) -> Answer:
    given = asked.given
    job, status, limit = given.get("job", ""), given.get("status", ""), given.get("limit", 50)
    return {"runs": [_run(row) for row in asked.batches.runs(job, status=status, limit=limit)]}


def _show(asked: _Asked) -> Answer:
    row, held, attempts, steps = asked.batches.show(asked.given["instance"])
    return {
        "run": _run(row),
        "heartbeat_age_seconds": None if held is None else held.age_seconds,
        "steps": [_plain(one._replace(data=None)) for one in steps],
        "attempts": [_plain(one) for one in attempts],
    }


def _plan(asked: _Asked) -> Answer:
    from_step = asked.given.get("from_step", "")
    found = asked.batches.plan(asked.given["instance"], from_step=from_step)
    return {**_plain(found), "steps": [_plain(one) for one in found.steps]}


def _start(asked: _Asked) -> Answer:
    job = asked.given["job"]
    params = asked.batches.parsed(job, asked.given.get("params", {}))
    return _plain(asked.batches.start(job, params, by=asked.by, request=asked.key))


def _backfill(asked: _Asked) -> Answer:
    job = asked.given["job"]
    since, until = (_moment(asked.given[name], name) for name in ("since", "until"))
    params = asked.batches.times(job, since, until)
    return {"runs": [_plain(one) for one in asked.batches.backfill(job, params, by=asked.by)]}


def _hold(asked: _Asked) -> Answer:
    return _plain(asked.batches.hold(asked.given["job"], by=asked.by))


def _release(asked: _Asked) -> Answer:
    return _plain(asked.batches.release(asked.given["job"], by=asked.by))


_OTHERS: dict[str, Callable[[_Asked], Answer]] = {
    "jobs": _jobs,
    "runs": _runs,
    "show": _show,
    "plan": _plan,
    "start": _start,
    "backfill": _backfill,
    "hold": _hold,
    "release": _release,
}


# --- requests -------------------------------------------------------------------------------------
async def _body(request: Request, operation: Operation) -> dict[str, Any]:
    """The JSON object of a request. Raises _RefusedError."""
    text = b""
    async with asyncio.timeout(BODY_SECONDS):
        async for part in request.stream():
            text += part
            if len(text) > BODY_BYTES_MAX:
                raise _RefusedError(413, "TOO_LARGE", f"at most {BODY_BYTES_MAX} bytes")
    if operation.body is None or not text:
        text = b"{}"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _RefusedError(400, "NOT_JSON", "the body is no JSON") from error
    schemas = operation.body or {}
    if not isinstance(found, dict) or not set(found) <= set(schemas):
        known = ", ".join(schemas) or "nothing"
        raise _RefusedError(422, "UNKNOWN_FIELD", f"the body is an object with {known}")
    for name, value in found.items():
        fits = isinstance(value, str) and _is_text(value)
        if schemas[name]["type"] == "object":
            fits = isinstance(value, dict) and all(
                isinstance(one, str) and _is_text(one) for one in [*value, *value.values()]
            )
        if not fits:
            raise _RefusedError(422, "WRONG_FIELD", f"{name} is not as the document says")
    missing = sorted(set(operation.required) - set(found))
    if missing:
        raise _RefusedError(422, "MISSING_FIELD", f"{', '.join(missing)} is missing")
    return found


def _is_text(value: str) -> bool:
    return value.isprintable()


def _query(request: Request, operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in request.query_params.items():
        schema = operation.query.get(name)
        if schema is None:
            raise _RefusedError(422, "UNKNOWN_FIELD", f"there is no {ascii(name)[:60]} here")
        value: Any = text
        if schema["type"] == "integer":
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise _RefusedError(422, "WRONG_FIELD", f"{name} is a whole number")
            value = int(text)
            if not schema["minimum"] <= value <= schema["maximum"]:
                limits = f"{schema['minimum']} to {schema['maximum']}"
                raise _RefusedError(422, "WRONG_FIELD", f"{name} is from {limits}")
        found[name] = value
    return found


def _moment(text: str, name: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise _RefusedError(422, "WRONG_FIELD", f"{name} is no time") from error
    if found.tzinfo is None:
        raise _RefusedError(422, "WRONG_FIELD", f"{name} has no time zone")
    return found


# --- answers --------------------------------------------------------------------------------------
def _run(row: RunRow) -> Answer:
    names = ("due_at", "created_at", "started_at", "moved_at", "ended_at")
    times = {name: _time(getattr(row, name)) for name in names}
    return {**_plain(row), "params": json.loads(row.params), **times}


def _plain(value: Any) -> Answer:
    found: Answer = plain(value)
    return found


def _time(seconds: float | None) -> str | None:
    return when(seconds).replace(" ", "T") or None


def _status(error: DulyError) -> int:
    kinds = ((NotFoundError, 404), (WrongStatusError, 409), (RetryableError, 503))
    for kind, status in (*kinds, (OutcomeUnknownError, 503)):
        if isinstance(error, kind):
            return status
    return 422


def _unknown() -> JSONResponse:
    answer = _error(401, "UNAUTHORIZED", "send Authorization: Bearer TOKEN")
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


async def _lost(request: Request, error: Exception) -> JSONResponse:
    status = getattr(error, "status_code", 404)
    return _error(status, "NOT_FOUND" if status == 404 else "WRONG_METHOD", "see /openapi.json")


def _error(status: int, code: str, detail: str, **more: Any) -> JSONResponse:
    return _json({"error": {"code": code, "detail": detail, **more}}, status)


def _json(content: Any, status: int = 200) -> JSONResponse:
    from starlette.responses import JSONResponse

    return JSONResponse(content, status)
