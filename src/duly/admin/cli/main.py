"""``duly``: the command line.

Owns the list of commands and what a command's end means: exit code 0 ok, 1 a problem, 2 wrong usage
or not provable, 130 interrupted, 141 when whoever read the output went away.  Errors of duly are
one line on standard error, without a traceback; with ``--json`` also a document on standard output.
Commands are imported when they are used, so that ``duly --help`` is quick.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from duly.admin.cli.output import (
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    EXIT_PROBLEM,
    EXIT_USAGE,
    clean,
)
from duly.errors import DulyError

__all__ = ["cli", "invoke", "main"]

_COMMANDS = {
    "2pc": ("duly.admin.cli.twophase:two_phase", "Global transactions in doubt."),
    "batch": ("duly.admin.cli.batch:batch", "Batch: queries that become delivered files."),
    "cdc": ("duly.admin.cli.streams:cdc", "Changes of a database as events: the streams."),
    "check": ("duly.admin.cli.check:check", "Look for everything that is wrong with an App."),
    "choose": ("duly.admin.cli.choose:choose_command", "Which way of integrating fits."),
    "db": ("duly.admin.cli.tables:db", "The tables: upgrade, sql, status, check, prune."),
    "demo": ("duly.admin.cli.start:demo", "Run the main job on real data, in ./duly-demo."),
    "doctor": ("duly.admin.cli.check:doctor", "Look at the database, the broker, the drivers."),
    "failures": ("duly.admin.cli.failures:failures", "The failure log."),
    "inbox": ("duly.admin.cli.boxes:inbox", "Received messages that need somebody."),
    "init": ("duly.admin.cli.start:init", "Write a small App to begin with."),
    "outbox": ("duly.admin.cli.boxes:outbox", "Stored messages that need somebody."),
    "reconcile": ("duly.admin.cli.sums:reconcile_command", "Does everything add up?"),
    "run": ("duly.admin.cli.run:run", "Run the roles of an App."),
    "topics": ("duly.admin.cli.topics:topics", "What the broker holds."),
    "web": ("duly.admin.cli.web:web", "Serve the REST service on batch runs."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, sorted."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="duly", prog_name="duly")
def cli() -> None:
    """Reliable integration between systems."""


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    sys.exit(invoke(sys.argv[1:]))


def invoke(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and raises nothing that is not a bug."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name the terminal cannot show
    try:
        code: Any = cli.main(list(arguments), prog_name="duly", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return _failed(arguments, "USAGE", error.format_message(), exit_code=EXIT_USAGE)
    except click.ClickException as error:
        error.show()
        return _failed(arguments, "PROBLEM", error.format_message(), exit_code=EXIT_PROBLEM)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except DulyError as error:
        click.echo(" ".join(clean(error).split()), err=True)
        return _failed(arguments, error.code, error.detail, exit_code=EXIT_PROBLEM)
    except BrokenPipeError:
        return EXIT_PIPE
    return code if isinstance(code, int) else 0


def _failed(arguments: Sequence[str], code: str, detail: str, *, exit_code: int) -> int:
    if "--json" in arguments:
        click.echo(json.dumps({"error": {"code": code, "detail": detail}}))
    return exit_code
