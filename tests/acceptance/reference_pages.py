"""The pages of docs/reference/ that are made from the code: signatures, settings, errors, commands.

    python -m tests.acceptance.reference_pages        writes them

``PAGES`` has a function per page that gives its whole text; ``test_docs`` compares.  The invariant:
nothing here repeats what the code says in words of its own, so a page cannot be wrong about it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ForwardRef

import click

import duly
from duly import calls, config, errors, sinks
from duly.admin.cli.main import cli
from duly.admin.web import Tokens, make_service
from duly.background import Background, BackgroundOptions, PoolStatus, Task
from duly.batch.registry import JobOptions
from duly.batch.service import Batches
from duly.calls.call import AsyncCall, Call
from duly.calls.registry import CallOptions
from duly.cdc.debezium import Debezium
from duly.cdc.operator import Streams
from duly.cdc.registry import RuleOptions
from duly.inbox.effects import NotFound
from duly.inbox.handlers import HandlerRegistry
from duly.observe.health import Health
from duly.outbox.operator import Operator
from duly.outbox.publish import UNKEYED
from duly.outbox.routes import Route
from duly.sink import Batch, Fed, Feed, Sink
from duly.testing.app_test import AppTest
from duly.twophase import AsyncGlobalTransaction, GlobalTransaction
from duly.twophase.operator import GlobalOperator

__all__ = ["PAGES", "tables"]

ROOT = Path(__file__).resolve().parents[2]
OF_CALLS = sorted({*calls.__all__} - {"Ignore", "NotFound", "Retry"})  # those have a place already
NOT_CALLED: set[type] = {
    AsyncCall,
    Call,
    calls.Answer,
    calls.Deferred,
    calls.Reply,
    AsyncGlobalTransaction,
    Background,
    Batches,
    GlobalOperator,
    GlobalTransaction,
    PoolStatus,
    Task,
    duly.AsyncTx,
    duly.Command,
    duly.Event,
    duly.Tx,
    Health,
    NotFound,
    Operator,
    Streams,
}
MADE = "<!-- Made from the code by tests/acceptance/reference_pages.py: change that. -->\n"
STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
API = """\
`from duly import ...` - everything public is here. What stands behind a signature is what the code
says of itself: what it guarantees, what happens on failure, whether it may be repeated.
"""
SETTINGS = """\
Where a setting may stand, the first that has it counts: an argument of `App(...)`, a variable
`DULY_` and the name in capitals, `duly.toml` in the current folder, the default. They are read when
the App first needs them. A key that nobody knows is an error that names the nearest one.

Durations are seconds, or text such as `500ms`, `5s`, `15m`, `2h`, `7d`.
"""
DULY_APP = """\
`DULY_APP`, or `app = "MODULE:APP"` in `duly.toml`, is no setting: it names the App that the command
line works on. Variables that begin with `DULY_TEST_` are those of the tests.
"""
ERRORS = """\
Ordered by what the caller should do. The code is the same in logs, in the tables, on the command
line and here.
"""
STORED_CODES = """\
`last_error` of a row begins with a code of this page or the class of the exception that a handler
raised, then where it was raised. Never its text, because texts of errors quote data. What to do:
[operate](../howto/operate.md).
"""
COMMANDS = """\
Exit codes: 0 ok, 1 a problem, 2 wrong usage or not provable, 130 interrupted, 141 the reader went
away. With `--json` standard output is exactly one JSON document, also for an error.

Which App: the first word of every command, `MODULE:APP`; where that is left out, `DULY_APP`, else
`app` in `duly.toml`. What a command is about follows it: `duly outbox show shop:app 12`.
"""


def prose(thing: Any) -> str:
    """A docstring as paragraphs of single lines."""
    text = inspect.cleandoc(thing.__doc__ or "")
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(part.replace("``", "`").replace("|", "\\|") for part in parts)


def signature(thing: Any, name: str) -> str:
    """``name(parameters) -> result`` with the annotations as they were written."""
    found = inspect.signature(thing)
    parts: list[str] = []
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(p.startswith("*") for p in parts):
            parts.append("*")
        star = STARS.get(parameter.kind, "")
        parts.append(
            f"{star}{parameter.name}: {_written(parameter.annotation)}{_default(parameter)}"
        )
    result = found.return_annotation
    after = "" if result is found.empty else f" -> {_written(result)}"
    return f"{name}({', '.join(parts)}){after}"


def _written(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__
    return str(annotation).replace("typing.", "")


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    return " = ..." if parameter.default is UNKEYED else f" = {parameter.default!r}"


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties of a class, its own bases of ours included, as written."""
    seen = set()
    for cls in owner.__mro__:
        if not cls.__module__.startswith("duly"):
            continue
        for name, member in vars(cls).items():
            plain = getattr(member, "__wrapped__", member)
            if (
                name.startswith("_")
                or name in seen
                or not (inspect.isfunction(plain) or isinstance(member, property))
            ):
                continue
            seen.add(name)
            yield name, member


def described(name: str, thing: Any, level: str = "##") -> str:
    """A class, function or alias with what can be called on it."""
    lines = [f"{level} `{name}`\n"]
    if inspect.isclass(thing):
        if thing not in NOT_CALLED and not issubclass(thing, Exception):
            lines.append(f"`{signature(thing, name).removesuffix(' -> None')}`\n")
        lines.append(prose(thing) + "\n")
        for method, member in members(thing):
            lines += _member(method, member)
    elif callable(thing):
        lines += [f"`{signature(thing, name)}`\n", prose(thing) + "\n"]
    else:
        lines.append(prose(type(thing)) + "\n")
    return "\n".join(lines)


def _member(name: str, member: Any) -> list[str]:
    if isinstance(member, property):
        return [f"- **`{name}`** - {_inline(member.fget)}\n"]
    prefix = "async " if inspect.iscoroutinefunction(member) else ""
    return [f"- **`{prefix}{signature(member, name)}`** - {_inline(member)}\n"]


def _inline(thing: Any) -> str:
    return prose(thing).replace("\n\n", "\n\n  ")


def api() -> str:
    """Everything in ``duly.__all__``, and what it gives access to."""
    text = [
        MADE,
        "# API\n",
        API,
    ]
    text += [described(name, getattr(duly, name)) for name in duly.__all__]
    text.append("# Beside `duly`\n")
    for name, method in (("app.on", HandlerRegistry.on), ("app.handle", HandlerRegistry.handle)):
        text.append(f"## Options of `{name}`\n\n`{signature(method, name)}`\n\n{prose(method)}\n")
    text.append(f"## Options of `app.background`\n\n{prose(BackgroundOptions)}\n")
    text.append(f"## Options of `app.call`\n\n{prose(CallOptions)}\n")
    text.append(f"## Options of `app.batch`\n\n{prose(JobOptions)}\n")
    text.append(f"## Options of `app.cdc`\n\n{prose(RuleOptions)}\n")
    beside: dict[str, Any] = {
        "duly.background.Background": Background,
        "duly.background.Task": Task,
        "duly.background.PoolStatus": PoolStatus,
        "duly.calls.Call": Call,
        "duly.calls.AsyncCall": AsyncCall,
        **{f"duly.calls.{name}": getattr(calls, name) for name in OF_CALLS},
        "duly.batch.service.Batches": Batches,
        "duly.cdc.debezium.Debezium": Debezium,
        "duly.cdc.operator.Streams": Streams,
        "duly.admin.web.make_service": make_service,
        "duly.admin.web.Tokens": Tokens,
        "duly.inbox.effects.NotFound": NotFound,
        "duly.observe.health.Health": Health,
        "duly.outbox.operator.Operator": Operator,
        "duly.outbox.routes.Route": Route,
        "duly.sink.Batch": Batch,
        "duly.sink.Fed": Fed,
        "duly.sink.Feed": Feed,
        "duly.sink.Sink": Sink,
        **{f"duly.sinks.{name}": getattr(sinks, name) for name in sinks.__all__},
        "duly.testing.app_test.AppTest": AppTest,
        "duly.twophase.GlobalTransaction": GlobalTransaction,
        "duly.twophase.AsyncGlobalTransaction": AsyncGlobalTransaction,
        "duly.twophase.operator.GlobalOperator": GlobalOperator,
    }
    for path, thing in beside.items():
        text.append(
            described(path.rpartition(".")[2], thing).replace(
                "`\n", f"`\n\nIn `{path.rpartition('.')[0]}`.\n", 1
            )
        )
    return "\n".join(text)


def settings() -> str:
    """The table of ``duly.config``."""
    lines = [
        MADE,
        "# Settings\n",
        SETTINGS,
        "| setting | kind | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for key in config.keys():  # noqa: SIM118  # no dictionary
        default = (
            ""
            if key.default is None
            else f"`{str(key.default).lower() if key.kind == 'flag' else key.default}`"
        )
        lines.append(f"| `{key.name}` | {key.kind} | {default} | {key.meaning} |")
    lines.append(f"\n{DULY_APP}")
    return "\n".join(lines)


def error_page() -> str:
    """The error tree and the codes of raise sites."""
    tree = inspect.cleandoc(errors.__doc__ or "").split("\n\n")[1]
    lines = [
        MADE,
        "# Errors\n",
        ERRORS,
        "```\n" + inspect.cleandoc(tree) + "\n```\n",
        "| error | code | what happened, and what to do |",
        "| --- | --- | --- |",
    ]
    for name in errors.__all__:
        thing: Any = getattr(errors, name)
        if isinstance(thing, type):
            code: str = vars(thing)["code"]
            lines.append(f"| `{name}` | `{code}` | {prose(thing)} |")
    lines += [
        "",
        "## More precise codes\n",
        "A raise site may say more precisely what was wrong. These stand in the source:\n",
        ", ".join(f"`{code}`" for code in raise_site_codes()) + ".\n",
        "## Codes of stored messages\n",
        STORED_CODES,
    ]
    return "\n".join(lines)


def raise_site_codes() -> list[str]:
    """Every ``code="..."`` in the source."""
    found = set()
    for path in (ROOT / "src" / "duly").rglob("*.py"):
        if "testing" not in path.parts and "demo" not in path.parts:
            found |= set(re.findall(r'\bcode="([A-Z][A-Z_]+)"', path.read_text(encoding="utf-8")))
    return sorted(found)


def commands() -> str:
    """The help of every command."""
    lines = [
        MADE,
        "# Command line\n",
        COMMANDS,
    ]
    with click.Context(cli, info_name="duly") as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            lines.append(f"## `duly {name}`\n")
            lines += _command(command, f"duly {name}", context)
    return "\n".join(lines)


def _command(command: click.Command, path: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield inspect.cleandoc(command.help or "").replace("\b", "") + "\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield f"### `{path} {name}`\n"
            yield from _command(inner, f"{path} {name}", context)
        return
    usage = " ".join(p for p in (path, *_arguments(command)) if p)
    yield f"`{usage}`\n"
    rows = [p.get_help_record(context) for p in command.params if isinstance(p, click.Option)]
    for record in rows:
        if record is not None:
            option, meaning = (" ".join(part.split()).replace("|", "\\|") for part in record)
            yield f"- `{option}` {meaning}".rstrip()
    yield ""


def _arguments(command: click.Command) -> Iterator[str]:
    if any(isinstance(p, click.Option) for p in command.params):
        yield "[OPTIONS]"
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            name = parameter.human_readable_name.upper()
            many = "..." if parameter.nargs == -1 else ""
            plain = name if parameter.required or name.startswith("[") else f"[{name}]"
            yield plain + many


PAGES: dict[str, Callable[[], str]] = {
    "api.md": api,
    "cli.md": commands,
    "errors.md": error_page,
    "settings.md": settings,
}


def tables(dialect: str) -> dict[str, list[str]]:
    """Table -> columns, as the migrations of a database make them."""
    folder = ROOT / "src" / "duly" / "databases" / dialect / "migrations"
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        for name, body in re.findall(
            r"CREATE TABLE IF NOT EXISTS (\w+) \((.*?)\n\);", text, re.DOTALL
        ):
            found[name] = re.findall(r"^    ([a-z]\w*) ", body, re.MULTILINE)
        for name, column in re.findall(
            r"ALTER TABLE (\w+) ADD COLUMN (?:IF NOT EXISTS )?(\w+)", text
        ):
            found[name].append(column)
    return found


if __name__ == "__main__":
    for page, make in PAGES.items():
        (ROOT / "docs" / "reference" / page).write_text(make(), encoding="utf-8")
