"""How the command line prints: a table for people, one JSON document for programs.

The invariant: with ``--json`` standard output holds exactly one valid JSON document, also when the
command fails; and nothing that comes out of a table of messages reaches the terminal unescaped,
because names, errors and payloads were written by somebody else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

import click

from duly.ports import Finding, Severity

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_PIPE",
    "EXIT_PROBLEM",
    "EXIT_USAGE",
    "clean",
    "document",
    "json_option",
    "note",
    "plain",
    "show_findings",
    "table",
    "when",
    "write",
]

EXIT_OK = 0
EXIT_PROBLEM = 1
EXIT_USAGE = 2  # also: not provable
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as if ended by SIGPIPE: the reader went away

_CELL_MAX = 60

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """The option ``--json``, given to the command as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document.")(command)


def write(text: str) -> None:
    """Print a line on standard output. A reader that went away ends the command quietly."""
    try:
        # Line by line: an unbuffered stream takes a part of one long write and does not say so.
        sys.stdout.writelines(f"{line}\n" for line in text.split("\n"))
        sys.stdout.flush()
    except BrokenPipeError:
        leave_pipe()


def leave_pipe() -> None:
    """End the command after its reader went away. Raises click's Exit."""
    # The interpreter flushes once more when it ends: let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise click.exceptions.Exit(EXIT_PIPE)


def note(text: str) -> None:
    """Print a line for people on standard error."""
    click.echo(clean(text), err=True)


def document(value: Any) -> None:
    """Print one JSON document."""
    write(json.dumps(plain(value), indent=2, ensure_ascii=True, allow_nan=False))


def plain(value: Any) -> Any:
    """A value as JSON can hold it: named tuples by name, enums by value, bytes as escaped text."""
    if hasattr(value, "_asdict"):
        return {name: _timed(name, item) for name, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _timed(name: str, value: Any) -> Any:
    return when(value) if name.endswith("_at") and value is not None else plain(value)


def when(seconds: float | None) -> str:
    """A time in seconds since 1970 as RFC 3339, "" for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def clean(value: Any) -> str:
    """``value`` as text that cannot steer a terminal."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows: by rich on a terminal where it is installed, else in plain columns."""
    cells = [[clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and _rich_table(headers, cells):
        return
    short = [[_short(cell) for cell in row] for row in (list(headers), *cells)]
    widths = [max(map(len, column)) for column in zip(*short, strict=True)]
    for line in short:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        write("  ".join(padded).rstrip())


def _short(cell: str) -> str:
    return cell if len(cell) <= _CELL_MAX else f"{cell[: _CELL_MAX - 3]}..."


def _rich_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        grid.add_column(header, overflow="ellipsis")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    try:
        Console().print(grid)
    except BrokenPipeError:
        leave_pipe()
    return True


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print findings; returns the exit code: a problem when one is red."""
    red = any(finding.severity is Severity.RED for finding in findings)
    if as_json:
        shown = [
            {"code": f.code, "severity": f.severity.value, "message": f.message, "fix": f.fix}
            for f in findings
        ]
        document({"ok": not red, "findings": shown})
    for finding in () if as_json else findings:
        fix = f" - {finding.fix}" if finding.fix else ""
        line = f"{finding.severity.value:6} [{finding.code}] {finding.message}{fix}"
        write(clean(line))
    if not findings and not as_json:
        write("nothing found")
    return EXIT_PROBLEM if red else EXIT_OK
