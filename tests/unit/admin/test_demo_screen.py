"""What is shown: plain lines anywhere, bars on a terminal."""

from __future__ import annotations

import io

import pytest

from duly.admin.demo.meter import Counts
from duly.admin.demo.reconcile import Check
from duly.admin.demo.screen import PlainScreen, RichScreen, Screen, open_screen

CHECKS = [Check("flights", "3,000", "3,000", True), Check("sent twice [x]", "0", "1", False)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(screen: Screen, stream: io.StringIO) -> str:
    screen.title("a title")
    screen.progress(Counts(1, 2, 3, 4), Counts(10, 10, 10, 10))
    screen.say("SIGKILL at a random point")
    screen.verdict(CHECKS, ["", "It does not add up."])
    screen.close()
    screen.close()
    return stream.getvalue()


@pytest.mark.parametrize("kind", [PlainScreen, RichScreen])
def test_everything_said_is_shown(kind: type[PlainScreen | RichScreen]) -> None:
    stream = Terminal()
    text = shown(kind(stream), stream)
    for word in ("a title", "SIGKILL at a random point", "3,000", "sent twice [x]", "not add up"):
        assert word in text


def test_a_wrong_line_is_marked_in_plain_text() -> None:
    stream = io.StringIO()
    lines = shown(PlainScreen(stream), stream).splitlines()
    marks = {line.split()[0]: line.split()[-1] for line in lines if line.startswith("  ")}
    assert marks["flights"] == "ok"
    assert marks["sent"] == "WRONG"


def test_progress_is_rare_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("duly.admin.demo.screen.time.monotonic", lambda: now)
    stream = io.StringIO()
    screen = PlainScreen(stream)
    for _ in range(40):
        now += 0.1
        screen.progress(Counts(1, 2, 3, 4), Counts(10, 10, 10, 10))
    assert len(stream.getvalue().splitlines()) in (1, 2)


def test_a_terminal_gets_the_better_screen_and_a_file_the_plain_one() -> None:
    assert isinstance(open_screen(Terminal()), RichScreen)
    assert isinstance(open_screen(io.StringIO()), PlainScreen)


def test_without_rich_a_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    assert isinstance(open_screen(Terminal()), PlainScreen)
