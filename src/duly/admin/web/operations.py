"""What the service can do: one table, from which routes and the OpenAPI document are made.

Owns paths, verbs and the shape of requests and answers.  The invariant: what is documented is what
is routed, because both are this table.  Carrying an operation out is ``service``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

__all__ = ["OPERATIONS", "VERBS", "Operation", "openapi"]

VERBS = ("restart", "rerun", "resend", "stop", "kill", "abandon")
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_TIME = {"type": ["string", "null"], "format": "date-time"}
_REASON = {
    "type": "string",
    "maxLength": 1000,
    "description": "Why, for the audit: printable text.",
}


class Operation(NamedTuple):
    """One operation. query: name -> schema. body: properties of the JSON object that is sent, None
    for none. required: of them. answer: the name of its schema. acts: it changes something.
    """

    method: str
    path: str
    name: str
    summary: str
    answer: str
    query: Mapping[str, Any] = {}
    body: Mapping[str, Any] | None = None
    required: tuple[str, ...] = ()
    acts: bool = False


def _on_run(verb: str, summary: str, **more: Any) -> Operation:
    body = {"reason": _REASON, **more}
    return Operation(
        "post", f"/v1/runs/{{instance}}/{verb}", verb, summary, "Acted", body=body, acts=True
    )


OPERATIONS = (
    Operation("get", "/v1/jobs", "jobs", "The jobs and their schedules.", "Jobs"),
    Operation(
        "get",
        "/v1/runs",
        "runs",
        "The newest runs.",
        "Runs",
        query={
            "job": _TEXT,
            "status": {
                "enum": ["due", "running", "stopped", "failed", "done", "abandoned"],
                "type": "string",
            },
            "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50},
        },
    ),
    Operation("get", "/v1/runs/{instance}", "show", "Everything about a run.", "Shown"),
    Operation(
        "get",
        "/v1/runs/{instance}/plan",
        "plan",
        "What another attempt would do; changes nothing.",
        "Plan",
        query={"from_step": _TEXT},
    ),
    Operation(
        "get",
        "/v1/runs/{instance}/verification",
        "verify",
        "Compare what was delivered with what was made; changes nothing.",
        "Verification",
    ),
    Operation(
        "post",
        "/v1/jobs/{job}/runs",
        "start",
        "Start an instance; one that is there already is left as it is.",
        "Acted",
        body={
            "params": {"type": "object", "additionalProperties": _TEXT},
            "reason": _REASON,
        },
        acts=True,
    ),
    Operation(
        "post",
        "/v1/jobs/{job}/backfill",
        "backfill",
        "Start the instances of all times of the schedule in a span.",
        "Backfilled",
        body={
            "since": {"type": "string", "format": "date-time"},
            "until": {"type": "string", "format": "date-time"},
            "reason": _REASON,
        },
        required=("since", "until"),
        acts=True,
    ),
    Operation(
        "post",
        "/v1/jobs/{job}/hold",
        "hold",
        "Hold the schedule of a job.",
        "Acted",
        body={"reason": _REASON},
        acts=True,
    ),
    Operation(
        "post",
        "/v1/jobs/{job}/release",
        "release",
        "Release the schedule of a job.",
        "Acted",
        body={"reason": _REASON},
        acts=True,
    ),
    _on_run("restart", "Let a failed or stopped run go on from its last checkpoints."),
    _on_run("rerun", "Do a run again, whole or from a step on.", from_step=_TEXT),
    _on_run("resend", "Deliver the file of a run again."),
    _on_run("stop", "Stop a run at its next safe point."),
    _on_run("kill", "Stop a run now."),
    _on_run("abandon", "Give a run up."),
)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_RUN = _object(
    instance=_TEXT,
    job=_TEXT,
    params={"type": "object", "additionalProperties": _TEXT},
    status=_TEXT,
    attempt=_COUNT,
    owner=_TEXT,
    last_error=_TEXT,
    scheduled_for={"type": ["string", "null"]},
    created_at=_TIME,
    started_at=_TIME,
    moved_at=_TIME,
    ended_at=_TIME,
)
_SCHEMAS = {
    "Run": _RUN,
    "Acted": _object(instance=_TEXT, status=_TEXT, changed={"type": "boolean"}),
    "Backfilled": _object(runs=_list(_ref("Acted"))),
    "Jobs": _object(
        jobs=_list(
            _object(
                job=_TEXT,
                params={"type": "object", "additionalProperties": _TEXT},
                steps=_list(_TEXT),
                schedule=_TEXT,
                time_zone=_TEXT,
                held={"type": "boolean"},
                next_at=_TIME,
            )
        )
    ),
    "Runs": _object(runs=_list(_ref("Run"))),
    "Shown": _object(
        run=_ref("Run"),
        heartbeat_age_seconds={"type": ["number", "null"]},
        steps=_list(
            _object(step=_TEXT, status=_TEXT, rows=_COUNT, size_bytes=_COUNT, attempt=_COUNT)
        ),
        attempts=_list(_object(attempt=_COUNT, status=_TEXT, owner=_TEXT, error=_TEXT)),
    ),
    "Plan": _object(
        instance=_TEXT,
        status=_TEXT,
        changed={"type": "boolean"},
        steps=_list(_object(step=_TEXT, does=_TEXT, rows=_COUNT, size_bytes=_COUNT)),
    ),
    "Verification": _object(ok={"type": "boolean"}, differences=_list(_TEXT)),
    "Error": _object(
        error={
            **_object(code=_TEXT, detail=_TEXT),
            "properties": {
                "code": _TEXT,
                "detail": _TEXT,
                "owner": _TEXT,
                "heartbeat_age_seconds": {"type": ["number", "null"]},
            },
        }
    ),
}
_ERRORS = {
    "400": "The request is not understood.",
    "401": "No token, or nobody's.",
    "404": "There is no such job, run or path.",
    "409": "It does not apply in the status the run has; with owner and age of the heartbeat where"
    " an attempt is under way.",
    "413": "The request is too large.",
    "422": "A value does not fit.",
    "503": "The database, or a server, cannot be reached now.",
}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of the service."""
    paths: dict[str, Any] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "duly batch", "version": _version()},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(one: Operation) -> dict[str, Any]:
    in_path = [part[1:-1] for part in one.path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in in_path
    ]
    parameters += [{"name": name, "in": "query", "schema": s} for name, s in one.query.items()]
    answer = {"content": {"application/json": {"schema": _ref(one.answer)}}}
    error = {"content": {"application/json": {"schema": _ref("Error")}}}
    shown: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", **answer},
            **{code: {"description": text, **error} for code, text in _ERRORS.items()},
        },
    }
    if one.acts:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "schema": {"type": "string", "maxLength": 180},
                "description": "The same request under the same key is carried out once.",
            }
        )
    if one.body is not None:
        schema = {"type": "object", "properties": dict(one.body), "additionalProperties": False}
        schema["required"] = list(one.required)
        content = {"application/json": {"schema": schema}}
        shown["requestBody"] = {"required": bool(one.required), "content": content}
    return shown


def _version() -> str:
    try:
        return version("duly")
    except PackageNotFoundError:  # a checkout on the path
        return "0"
