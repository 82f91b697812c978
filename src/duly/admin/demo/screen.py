"""What is seen while it runs, and the verdict at the end.

Owns all output of the demo.  With rich on a terminal: bars that move and lines that stay; otherwise
the same lines in plain text, so that a log of a build server reads well.  Nothing is decided here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TextIO

from duly.admin.demo.meter import Counts
from duly.admin.demo.reconcile import Check

__all__ = ["PlainScreen", "RichScreen", "Screen", "open_screen"]

_PROGRESS_EVERY_SECONDS = 2.0
_LABELS = (
    "flights written",
    "by destination, in order",
    "by carrier, in batches",
    "passengers told",
)


class Screen(Protocol):
    """Where the demo shows itself."""

    def title(self, text: str) -> None:
        """What is going to happen, once."""
        ...

    def say(self, text: str) -> None:
        """Something happened now."""
        ...

    def progress(self, counts: Counts, goal: Counts) -> None:
        """How far it is; called often."""
        ...

    def verdict(self, checks: Sequence[Check], lines: Iterable[str]) -> None:
        """The table at the end, and what is said below it."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was. Idempotent."""
        ...


def open_screen(stream: TextIO) -> Screen:
    """The better screen where ``stream`` is a terminal and rich is installed."""
    if stream.isatty():
        with suppress(ImportError):
            return RichScreen(stream)
    return PlainScreen(stream)


class PlainScreen:
    """Lines of text."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = self._said = time.monotonic()

    def title(self, text: str) -> None:
        """Print it."""
        self._line(text)

    def say(self, text: str) -> None:
        """Print it with the seconds since the start."""
        self._line(f"{time.monotonic() - self._started:6.1f} s  {text}")

    def progress(self, counts: Counts, goal: Counts) -> None:
        """A line every two seconds."""
        now = time.monotonic()
        if now - self._said >= _PROGRESS_EVERY_SECONDS:
            self._said = now
            pairs = zip(_LABELS, counts, goal, strict=True)
            self.say("  " + " · ".join(f"{label} {n:,}" for label, n, _ in pairs))

    def verdict(self, checks: Sequence[Check], lines: Iterable[str]) -> None:
        """A table of words."""
        wide = [max(map(len, column)) for column in zip(*(c[:3] for c in checks), strict=True)]
        self._line("")
        for what, expected, found, right in checks:
            mark = "ok" if right else "WRONG"
            columns = f"{what:<{wide[0]}}  {expected:>{wide[1]}}  {found:>{wide[2]}}"
            self._line(f"  {columns}  {mark}")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Nothing to undo."""

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class RichScreen:
    """Bars and colours. Raises ImportError without rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(file=stream, highlight=False)
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("  {task.description:<26}"),
            BarColumn(bar_width=36),
            MofNCompleteColumn(),
            console=self._console,
            transient=True,
        )
        self._bars: list[Any] = []

    def title(self, text: str) -> None:
        """Bold."""
        self._console.print(f"[bold]{_plain(text)}[/]\n")

    def say(self, text: str) -> None:
        """A line above the bars."""
        style = "bold red" if text.startswith("SIGKILL") else ""
        seconds = f"[dim]{time.monotonic() - self._started:6.1f} s[/]"
        shown = f"[{style}]{_plain(text)}[/]" if style else _plain(text)
        self._progress.console.print(f"{seconds}  {shown}")

    def progress(self, counts: Counts, goal: Counts) -> None:
        """Move the bars."""
        if not self._bars:
            self._bars = [
                self._progress.add_task(label, total=total)
                for label, total in zip(_LABELS, goal, strict=True)
            ]
            self._progress.start()
        for bar, n in zip(self._bars, counts, strict=True):
            self._progress.update(bar, completed=n)

    def verdict(self, checks: Sequence[Check], lines: Iterable[str]) -> None:
        """A table with a mark for each line."""
        from rich.table import Table

        self.close()
        table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
        table.add_column("")
        table.add_column("expected", justify="right")
        table.add_column("found", justify="right")
        table.add_column("")
        for what, expected, found, right in checks:
            mark = "[green]✓[/]" if right else "[bold red]✗[/]"
            style = "" if right else "bold red"
            table.add_row(_plain(what), _plain(expected), _plain(found), mark, style=style)
        self._console.print()
        self._console.print(table)
        for line in lines:
            self._console.print(_plain(line))

    def close(self) -> None:
        """Take the bars away."""
        self._progress.stop()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
