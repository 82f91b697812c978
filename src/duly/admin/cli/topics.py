"""``duly topics``: what the broker holds, without consuming it.

Only brokers that keep a log can show it; of the others the command says so instead of guessing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import click

from duly.admin.cli.arguments import app_argument, app_then
from duly.admin.cli.output import clean, document, json_option, note, plain, table, when, write
from duly.admin.cli.target import missing_broker_file, require_app
from duly.config import chosen_app, load
from duly.errors import ConfigurationError, NotObservableError
from duly.kernel.names import check_name
from duly.ports import Broker, Peeked, TopicStatus

__all__ = ["topics"]

T = TypeVar("T")

_TIMEOUT_SECONDS = 15.0
_FOLLOW_SECONDS = 0.5


@runtime_checkable
class Log(Protocol):
    """A broker that shows what it holds."""

    async def topics(self) -> list[TopicStatus]:
        """Every topic, with its groups."""
        ...

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Stored messages behind a cursor; without one the newest."""
        ...


_broker_option = click.option(
    "--broker", metavar="URL", help="A broker without an App (or DULY_BROKER)."
)


@click.group()
def topics() -> None:
    """What the broker holds."""


@topics.command("list")
@app_argument
@_broker_option
@json_option
def list_topics(*, app: str | None, broker: str | None, as_json: bool) -> None:
    """Topics and queues with their groups and lag."""
    found = asyncio.run(_with_log(app, broker, lambda log: log.topics()))
    if as_json:
        document({"topics": found})
        return
    rows = [
        (topic.name, topic.kind, topic.depth, group and group.group, group and group.lag)
        for topic in found
        for group in (topic.groups or (None,))
    ]
    table(("TOPIC", "KIND", "MESSAGES", "GROUP", "LAG"), rows)
    if not found:
        note("this broker names no topics to who only looks; its own tools do")


@topics.command()
@app_then("topic", metavar="TOPIC")
@click.option("-n", "limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--follow", is_flag=True, help="Go on as messages come, until interrupted.")
@_broker_option
@json_option
def tail(
    *, topic: str, limit: int, follow: bool, app: str | None, broker: str | None, as_json: bool
) -> None:
    """The newest messages of a topic, consuming nothing."""
    check_name(topic, "topic")
    if follow and as_json:
        raise click.UsageError("--follow has no end and --json is one document: choose one")

    async def look(log: Log) -> None:
        found = await asyncio.wait_for(log.peek(topic, limit=limit), _TIMEOUT_SECONDS)
        if as_json:
            document({"topic": topic, "messages": [_message(peeked) for peeked in found]})
            return
        while True:
            for peeked in found:
                _print(peeked)
            if not follow:
                return
            cursor = found[-1].cursor if found else ""
            found = []
            while not found:
                await asyncio.sleep(_FOLLOW_SECONDS)
                found = await log.peek(topic, after=cursor, limit=limit)

    asyncio.run(_with_log(app, broker, look))


def _message(peeked: Peeked) -> dict[str, Any]:
    shown = plain(peeked)
    message = peeked.message
    shown["message"] = {
        "id": message.id,
        "type": message.type,
        "kind": message.kind,
        "key": message.key,
        "headers": message.headers,
        "payload": _payload(message.payload),
    }
    return dict(shown)


def _payload(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return plain(payload)


def _print(peeked: Peeked) -> None:
    message = peeked.message
    text = plain(message.payload)
    line = f"{when(peeked.created_at)} {message.type} {message.id} key={message.key} {text}"
    write(clean(line))


async def _with_log(app: str | None, url: str | None, ask: Callable[[Log], Awaitable[T]]) -> T:
    broker = _open(app, url)
    try:
        if not isinstance(broker, Log):
            raise NotObservableError("this broker does not show what it holds; use its own tools")
        await broker.start()
        return await ask(broker)
    finally:
        await broker.close()


def _open(app: str | None, url: str | None) -> Broker:
    from duly.adapters import make_broker

    if app and url:
        raise click.UsageError("give an App or --broker, not both")
    named = None if url or not (app or chosen_app()) else require_app(app)
    settings = load({"broker": url}) if named is None else named.settings
    if path := missing_broker_file(settings.broker):
        raise ConfigurationError(f"there is no broker file {path}", code="BROKER_MISSING")
    return make_broker(settings) if named is None else named.make_broker()
