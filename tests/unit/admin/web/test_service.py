"""The REST service, asked as an ASGI server asks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from duly import App
from duly.admin.web import Tokens, make_service, read_tokens
from duly.admin.web.operations import OPERATIONS, openapi
from duly.errors import ConfigurationError, DulyError
from duly.ports import Statement
from tests.unit.batch.world import Script, add_job, make_app, until_status, working

TOKEN = "t0ken-of-alice-0123456789"


class Answer(NamedTuple):
    status: int
    body: Any


class Client:
    """Sends requests to an ASGI application."""

    def __init__(self, app: App) -> None:
        self._service = make_service(app, Tokens({"alice": TOKEN, "bob": "b" * 30}))

    async def __call__(
        self, method: str, path: str, body: Any = None, *, token: str = TOKEN, **headers: str
    ) -> Answer:
        content = body if isinstance(body, bytes) else b"" if body is None else _encoded(body)
        target, _, query = path.partition("?")
        given = {"authorization": f"Bearer {token}", **headers}
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": target,
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "headers": [(n.replace("_", "-").encode(), v.encode()) for n, v in given.items()],
        }
        sent: list[Mapping[str, Any]] = []
        parts = iter([{"type": "http.request", "body": content, "more_body": False}])

        async def receive() -> Any:
            return next(parts, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(self._service(scope, receive, send), 30)
        text = b"".join(one.get("body", b"") for one in sent[1:])
        return Answer(sent[0]["status"], json.loads(text))


def _encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    made = make_app(tmp_path)
    add_job(made, Script(), schedule="0 3 * * *")
    yield made
    made.close()


START = {"params": {"day": "2026-11-22"}, "reason": "asked by the bank"}


async def test_a_run_from_start_to_verification(app: App) -> None:
    ask = Client(app)
    started = await ask("POST", "/v1/jobs/lines/runs", START)
    assert started.status == 200
    assert started.body["changed"]
    again = await ask("POST", "/v1/jobs/lines/runs", START)
    assert again.body == {**started.body, "changed": False}
    run = f"/v1/runs/{started.body['instance']}"
    plan = await ask("GET", f"{run}/plan")
    assert [one["does"] for one in plan.body["steps"]] == ["all", "all"]
    async with working(app):
        await until_status(app, started.body["instance"], "done")
    shown = (await ask("GET", run)).body
    assert shown["run"]["status"] == "done"
    assert shown["run"]["params"] == {"day": "2026-11-22"}
    assert [one["rows"] for one in shown["steps"]] == [5, 5]
    assert (await ask("GET", f"{run}/verification")).body == {"ok": True, "differences": []}
    assert len((await ask("GET", "/v1/runs?job=lines&status=done&limit=5")).body["runs"]) == 1
    assert (await ask("GET", "/v1/jobs")).body["jobs"][0]["schedule"] == "0 3 * * *"
    target = {"target": f"batch/{started.body['instance']}", "limit": 5}
    with closing(app.database.connect()) as connection:
        (line,) = connection.ask(Statement("audit.of", target)).rows
    assert (line[2], line[6]) == ("alice", "asked by the bank")


async def test_a_key_makes_a_request_once(app: App) -> None:
    ask = Client(app)
    run = (await ask("POST", "/v1/jobs/lines/runs", START)).body["instance"]
    path = f"/v1/runs/{run}/rerun"
    first = await ask("POST", path, {"from_step": "send"}, idempotency_key="k1")
    second = await ask("POST", path, {"from_step": "send"}, idempotency_key="k1")
    third = await ask("POST", path, {"from_step": "send"}, idempotency_key="k2")
    assert [one.body["changed"] for one in (first, second, third)] == [True, False, True]


async def test_an_active_run_is_a_conflict_with_its_owner(app: App) -> None:
    ask, script = Client(app), Script()
    held = asyncio.Event()

    async def wait(step: str, line: int) -> None:
        while not held.is_set():
            await asyncio.sleep(0.01)

    script.before = wait
    add_job(app, script, name="slow")
    run = (await ask("POST", "/v1/jobs/slow/runs", START)).body["instance"]
    async with working(app):
        await until_status(app, run, "running")
        refused = await ask("POST", f"/v1/runs/{run}/rerun", {})
        assert refused.status == 409
        error = refused.body["error"]
        assert error["code"] == "RUN_ACTIVE"
        assert error["owner"]
        assert error["heartbeat_age_seconds"] >= 0
        held.set()
        await until_status(app, run, "done")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/runs/none", None, 404, "BATCH_RUN_UNKNOWN"),
        ("POST", "/v1/jobs/other/runs", {}, 404, "BATCH_JOB_UNKNOWN"),
        ("GET", "/v2", None, 404, "NOT_FOUND"),
        ("DELETE", "/v1/runs", None, 405, "WRONG_METHOD"),
        ("POST", "/v1/jobs/lines/runs", {}, 422, "BATCH_PARAMS"),
        ("POST", "/v1/jobs/lines/runs", {"params": {"day": "x"}}, 422, "BATCH_PARAMS"),
        ("POST", "/v1/jobs/lines/runs", {"params": []}, 422, "WRONG_FIELD"),
        ("POST", "/v1/jobs/lines/runs", {"params": {"day": 1}}, 422, "WRONG_FIELD"),
        ("POST", "/v1/jobs/lines/runs", {"reason": "a\nb"}, 422, "WRONG_FIELD"),
        ("POST", "/v1/jobs/lines/runs", {"who": "me"}, 422, "UNKNOWN_FIELD"),
        ("POST", "/v1/jobs/lines/runs", [], 422, "UNKNOWN_FIELD"),
        ("POST", "/v1/jobs/lines/runs", b"{", 400, "NOT_JSON"),
        ("POST", "/v1/jobs/lines/runs", b"[" * 50_000, 400, "NOT_JSON"),
        ("POST", "/v1/jobs/lines/runs", b" " * 70_000, 413, "TOO_LARGE"),
        ("POST", "/v1/jobs/lines/backfill", {"since": "x"}, 422, "MISSING_FIELD"),
        ("POST", "/v1/jobs/lines/backfill", {"since": "x", "until": "y"}, 422, "WRONG_FIELD"),
        ("GET", "/v1/runs?limit=0", None, 422, "WRONG_FIELD"),
        ("GET", "/v1/runs?limit=a", None, 422, "WRONG_FIELD"),
        ("GET", "/v1/runs?status=odd", None, 422, "OPERATOR"),
        ("GET", "/v1/runs?other=1", None, 422, "UNKNOWN_FIELD"),
    ],
)
async def test_what_is_asked_wrongly(
    app: App, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = await Client(app)(method, path, body)
    assert (answer.status, answer.body["error"]["code"]) == (status, code)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], "ÿ"])
async def test_without_a_token_nothing_is_answered(app: App, token: str) -> None:
    ask = Client(app)
    for operation in OPERATIONS:
        path = operation.path.replace("{instance}", "x").replace("{job}", "lines")
        assert (await ask(operation.method.upper(), path, token=token)).status == 401
    assert (await ask("GET", "/openapi.json", token=token)).status == 401


async def test_the_schedule_is_held_backfilled_and_released(app: App) -> None:
    ask = Client(app)
    assert (await ask("POST", "/v1/jobs/lines/hold", {})).body["changed"]
    span = {"since": "2026-11-01T00:00Z", "until": "2026-11-04T00:00Z"}
    filled = await ask("POST", "/v1/jobs/lines/backfill", span)
    assert [one["changed"] for one in filled.body["runs"]] == [True, True, True]
    assert app.batches.instance("lines", {"day": date(2026, 11, 2)}) in {
        one["instance"] for one in filled.body["runs"]
    }
    assert (await ask("POST", "/v1/jobs/lines/release", {})).body["changed"]


async def test_the_document_has_every_operation_and_whole_references(app: App) -> None:
    served = (await Client(app)("GET", "/openapi.json")).body
    assert served == openapi()
    found = {(path, method) for path, all_ in served["paths"].items() for method in all_}
    assert found == {(one.path, one.method) for one in OPERATIONS}
    ids = [one["operationId"] for all_ in served["paths"].values() for one in all_.values()]
    assert len(ids) == len(set(ids))
    text = json.dumps(served)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(served["components"]["schemas"])


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (f"alice {TOKEN}", 0o644),
        ("alice short", 0o600),
        ("alice", 0o600),
        ("", 0o600),
        (f"al/ice {TOKEN}", 0o600),
        ("alice " + "é" * 30, 0o600),
        ("#" * 70_000, 0o600),
    ],
)
def test_files_of_tokens_that_are_refused(tmp_path: Path, text: str, mode: int) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(DulyError) as refused:
        read_tokens(file)
    assert refused.value.code in ("WEB_TOKENS", "INVALID_NAME")
    assert TOKEN not in str(refused.value)


def test_a_file_of_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who may\nalice {TOKEN}\n\nbob {'b' * 30}\n")
    file.chmod(0o600)
    tokens = read_tokens(file)
    assert tokens.actor(f"Bearer {TOKEN}") == "alice"
    assert tokens.actor(f"bearer {'b' * 30}") == "bob"
    assert tokens.actor(f"Basic {TOKEN}") is None
    assert tokens.actor(None) is None
    with pytest.raises(ConfigurationError):
        read_tokens(tmp_path / "none")
