"""What stands against running an App: the findings of every room in one list.

Owns how findings are judged: red ones keep an App from starting, unless the code accepts them by
name with a reason (``allow_unsafe={"CODE": "reason"}``); then they are listed as weak, with that
reason, every time.  A server that cannot be reached is no finding against the program: it is told
as such, and the roles wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from duly.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    DatabaseUnavailableError,
    RetryableError,
    UnsafeSettingError,
)
from duly.outbox.schema import Schema
from duly.ports import Broker, Finding, MakesEngine, Severity

if TYPE_CHECKING:
    from duly.app import App
    from duly.cdc.registry import StreamRules

__all__ = [
    "check_all",
    "check_broker",
    "check_code",
    "check_database",
    "check_stream",
    "refuse_event_loop",
    "refuse_unsafe",
]

BROKER_SECONDS = 10.0
_ORDER = {Severity.RED: 0, Severity.WEAK: 1, Severity.GREEN: 2}


def check_code(app: App) -> list[Finding]:
    """Handlers, rules and message types."""
    return [
        *app.handlers.check(),
        *app.captures.check(),
        *app.jobs.check(),
        *_async_beside_a_framework(app),
    ]


def _async_beside_a_framework(app: App) -> Iterator[Finding]:
    """A framework's ORM shares the connection of plain handlers only (``MakesEngine``)."""
    if not isinstance(app.given_database, MakesEngine):
        return
    for group in app.handlers.groups:
        for handler in app.handlers.of_group(group):
            if handler.is_async and group != f"{app.name}.background":  # stored calls promise none
                text = f"{handler.label} is async: what it does by the framework's ORM is committed"
                yield Finding(
                    "ASYNC_BESIDE_ORM",
                    Severity.RED,
                    f"{text} by itself, without the record that the message was handled",
                    "make it a plain function, or accept it where it does not use the ORM",
                )


def check_database(app: App) -> list[Finding]:
    """The database server and duly's tables. Raises DatabaseUnavailableError."""
    schema = Schema(app.database, app.name)
    found = list(app.database.inspect())
    if schema.status().current or not schema.makes_itself:
        found += schema.check()
    return found


async def check_broker(broker: Broker) -> list[Finding]:
    """The broker. Raises BrokerUnavailableError: a server that is away is no fault of ours;
    ConfigurationError (BROKER_REFUSED): one that does not let us in is.
    """
    async with asyncio.timeout(BROKER_SECONDS):
        found = list(await broker.inspect())
    for finding in found:
        if finding.severity is Severity.RED and finding.code.endswith("_REACHABLE"):
            raise BrokerUnavailableError(finding.message)
        if finding.severity is Severity.RED and finding.code.endswith("_REFUSED"):
            raise ConfigurationError(finding.message, code="BROKER_REFUSED")
    return found


async def check_stream(app: App, stream: StreamRules) -> list[Finding]:
    """The rules of a stream, held against what its source can deliver. Raises
    DatabaseUnavailableError.
    """
    try:
        source = app.make_change_source(stream)
        never = stream.findings(source.features)
        return [*never, *await source.inspect(stream.tables())]
    except ConfigurationError as error:
        return [Finding(error.code, Severity.RED, f"{stream.name}: {error.detail}")]


def refuse_event_loop(what: str, instead: str) -> None:
    """Raise ConfigurationError (INSIDE_EVENT_LOOP) where an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    text = f"{what} blocks, and an event loop runs in this thread; write {instead}"
    raise ConfigurationError(text, code="INSIDE_EVENT_LOOP")


def check_all(app: App) -> list[Finding]:
    """Everything, worst first; for callers without an event loop. Raises ConfigurationError
    (INSIDE_EVENT_LOOP).
    """
    refuse_event_loop("app.check()", "await asyncio.to_thread(app.check)")
    found = check_code(app)
    try:
        found += [*check_database(app), *app.global_transactions.inspect()]
    except RetryableError as error:
        found.append(_unreachable("DATABASE_UNREACHABLE", error))
    found += _streams(app)
    try:
        found += asyncio.run(_with_broker(app))
    except (RetryableError, TimeoutError) as error:
        found.append(_unreachable("BROKER_UNREACHABLE", error))
    except ConfigurationError as error:
        fix = "correct the login and the URL, or the rights on the server"
        found.append(Finding(error.code, Severity.RED, error.detail, fix))
    accepted = accept(found, app.settings.allow_unsafe)
    return sorted(accepted, key=lambda finding: _ORDER[finding.severity])


def accept(found: Iterable[Finding], reasons: Mapping[str, str]) -> list[Finding]:
    """Red findings that the code accepts become weak, with the reason."""
    return [
        replace(one, severity=Severity.WEAK, fix=f"accepted in code: {reasons[one.code]}")
        if one.severity is Severity.RED and one.code in reasons
        else one
        for one in found
    ]


def refuse_unsafe(found: Iterable[Finding], reasons: Mapping[str, str]) -> None:
    """Raise UnsafeSettingError that lists every red finding which is not accepted."""
    red = [one for one in accept(found, reasons) if one.severity is Severity.RED]
    if red:
        raise UnsafeSettingError(
            "; ".join(f"{one.code}: {one.message}. {one.fix}".strip() for one in red)
        )


async def _with_broker(app: App) -> list[Finding]:
    broker = app.make_broker()
    try:
        await broker.start()
        return await check_broker(broker)
    finally:
        await broker.close()


def _streams(app: App) -> Iterator[Finding]:
    if any(finding.code == "CDC_RULES" for finding in app.captures.check()):
        return
    for stream in app.captures.streams:
        try:
            yield from asyncio.run(asyncio.wait_for(check_stream(app, stream), BROKER_SECONDS))
        except (RetryableError, TimeoutError) as error:
            yield _unreachable("CDC_SOURCE_UNREACHABLE", error)


def _unreachable(code: str, error: BaseException) -> Finding:
    what = "database" if isinstance(error, DatabaseUnavailableError) else "server"
    return Finding(
        code, Severity.RED, f"{what} not reached: {error}", "start it, or correct the URL"
    )
