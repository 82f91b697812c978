"""``duly check`` and ``duly doctor``: what is wrong with an App, and with what it stands on.

``check`` is the App's own list, the one a start is refused by.  ``doctor`` needs no App that works:
it asks the database, the tables and the broker, and says which drivers are there.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from importlib.util import find_spec

import click

from duly.admin.cli.arguments import app_argument
from duly.admin.cli.output import EXIT_PROBLEM, json_option, show_findings, when
from duly.admin.cli.target import (
    Target,
    database_option,
    missing_broker_file,
    open_target,
    require_app,
)
from duly.errors import DulyError
from duly.kernel.lifecycle import OUTBOX
from duly.outbox.schema import Schema
from duly.ports import Broker, Finding, Severity

__all__ = ["check", "doctor"]

_BROKER_SECONDS = 10.0
_EXTRAS = {
    "aiosqlite": "sqlite-async",
    "asyncmy": "mysql",
    "confluent_kafka": "kafka",
    "httpx2": "http",
    "nats": "nats",
    "opentelemetry": "tracing",
    "pika": "rabbitmq",
    "prometheus_client": "metrics",
    "psycopg": "postgres",
    "pymysql": "mysql",
    "redis": "redis",
    "rich": "cli",
}


@click.command()
@app_argument
@json_option
def check(*, app: str | None, as_json: bool) -> int:
    """Look for everything that is wrong with an App; exit code 1 when it would not start."""
    found = require_app(app)
    try:
        findings = list(found.check())
    finally:
        found.database.close()
    return show_findings(findings, as_json=as_json)


@click.command()
@app_argument
@database_option
@click.option("--broker", metavar="URL", help="A broker to look at (or DULY_BROKER).")
@json_option
def doctor(
    *,
    app: str | None,
    database: str | None,
    broker: str | None,
    as_json: bool,
) -> int:
    """Look at the database, its tables, the broker and the installed drivers."""
    findings = [_python(), *_drivers()]
    try:
        with open_target(app, database, create=True) as found:
            findings += _asked("database", lambda: [*found.database.inspect()])
            if path := found.missing_file():
                findings.append(_new("DATABASE_NEW", path))
            else:
                findings += _asked("tables", Schema(found.database, found.name).check)
                findings += _asked("outbox", lambda: _stuck(found))
            findings += _asked("broker", lambda: _broker(found, broker))
    except DulyError as error:
        findings.append(_problem("target", error))
    return show_findings(findings, as_json=as_json) and EXIT_PROBLEM


def _python() -> Finding:
    text = f"{platform.python_implementation()} {platform.python_version()}"
    return Finding("PYTHON", Severity.GREEN, text)


def _drivers() -> list[Finding]:
    return [
        Finding("EXTRA", Severity.GREEN, f"{module} is installed")
        if find_spec(module)
        else Finding("EXTRA", Severity.GREEN, f"{module} is not installed", f"duly[{extra}]")
        for module, extra in _EXTRAS.items()
    ]


def _new(code: str, path: str) -> Finding:
    return Finding(code, Severity.GREEN, f"there is no file {path} yet; the first start makes it")


def _stuck(found: Target) -> list[Finding]:
    """Topics whose destination does not take what is sent."""
    if not Schema(found.database, found.name).status().current:
        return []
    return [
        Finding(
            "TOPIC_STUCK",
            Severity.WEAK,
            f"{one.topic}: {one.rows} messages wait since {when(one.since)}: {one.error}",
            "start the service that handles it; nothing is lost meanwhile",
        )
        for one in found.operator().stuck(OUTBOX)
    ]


def _asked(what: str, ask: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return ask()
    except DulyError as error:
        return [_problem(what, error)]


def _problem(what: str, error: DulyError) -> Finding:
    return Finding(error.code, Severity.RED, f"{what}: {error.detail}", "see the code in the docs")


def _broker(found: Target, url: str | None) -> list[Finding]:
    from duly.adapters import make_broker

    if path := missing_broker_file(url or found.settings.broker):
        return [_new("BROKER_NEW", path)]
    if found.app is not None and url is None:
        return asyncio.run(_inspect(found.app.make_broker()))
    return asyncio.run(_inspect(make_broker(found.settings, url)))


async def _inspect(broker: Broker) -> list[Finding]:
    try:
        async with asyncio.timeout(_BROKER_SECONDS):
            await broker.start()
            return list(await broker.inspect())
    except TimeoutError:
        text = f"the broker did not answer within {_BROKER_SECONDS:.0f} s"
        return [Finding("BROKER_UNAVAILABLE", Severity.RED, text, "check the server and the URL")]
    finally:
        await broker.close()
