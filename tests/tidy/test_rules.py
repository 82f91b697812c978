"""Each house rule catches a planted violation and lets the same thing done right pass."""

from __future__ import annotations

import pytest

from tests.tidy import rules
from tests.tidy.rules import Rule, parse

DOC = '"""What it owns."""\n'
LONG = "def f():\n" + "    a = 1\n" * 70
SLEEP = "import time\ndef test_a():\n    assert a()\n"

PLANTED: list[tuple[Rule, str, str, str]] = [
    # rule, path, text that breaks it, text that keeps it
    (rules.module_docstring, "src/duly/a.py", "a = 1\n", DOC + "a = 1\n"),
    (rules.module_length, "src/duly/a.py", "a = 1\n" * 601, "a = 1\n" * 600),
    (rules.function_length, "src/duly/a.py", LONG, LONG.removesuffix("    a = 1\n")),
    (
        rules.function_length,
        "src/duly/a.py",
        "class A:\n  async " + LONG.replace("    ", "      "),
        "",
    ),
    (
        rules.positional_parameters,
        "src/duly/a.py",
        "def f(a, b, c, d): ...",
        "def f(a, b, c, *, d): ...",
    ),
    (
        rules.positional_parameters,
        "src/duly/a.py",
        "class P(Protocol):\n  @overload\n  async def f(self, a, b, /, c, d): ...",
        "class P(Protocol):\n  async def f(self, a, b, c, *args): ...",
    ),
    (
        rules.positional_parameters,
        "src/duly/a.py",
        "class P:\n  @staticmethod\n  def f(a, b, c, d): ...",
        "class P:\n  @staticmethod\n  def f(a, b, c): ...",
    ),
    (rules.banned_name, "src/duly/utils.py", "", ""),
    (rules.banned_name, "src/duly/outbox/row_types.py", "", ""),
    (rules.printing, "src/duly/a.py", "print(1)", "log.info(1)"),
    (rules.exports, "src/duly/a.py", "b = 1", "__all__ = ['b']\nb = 1"),
    (rules.exports, "src/duly/a.py", "__all__ = ['b']", "__all__ = ['b']\nfrom x import y as b"),
    (
        rules.exports,
        "src/duly/a.py",
        "__all__ = ['b', 'A']\nA = b = 1",
        "__all__ = ['A', 'b']\nA = b = 1",
    ),
    (rules.exports, "src/duly/a.py", "__all__ = ['b', 'b']\nb = 1", "__all__ = []\nb = 1"),
    (
        rules.exports,
        "src/duly/a.py",
        "__all__ = names()",
        "__all__ = ['A', 'Bb', 'a']\nclass Bb: ...\nA = a = 1",
    ),
    (rules.unfinished, "src/duly/a.py", "# TO" + "DO: later", "# to do it later would be late"),
    (rules.unfinished, "src/duly/a.py", "# FIX" + "ME", "# fixme"),
    (rules.empty_assert, "tests/test_a.py", "assert True", "assert a"),
    (rules.empty_assert, "tests/test_a.py", "assert (a, 'reason')", "assert a, 'reason'"),
    (rules.empty_assert, "tests/test_a.py", "assert 'always'", "assert not 'never'"),
    (
        rules.checks_nothing,
        "tests/test_a.py",
        "def test_a():\n  run()",
        "def test_a():\n  assert run()",
    ),
    (
        rules.checks_nothing,
        "tests/test_a.py",
        "class TestA:\n  async def test_a(self):\n    await run()",
        "class TestA:\n  async def test_a(self):\n    with pytest.raises(E):\n      await run()",
    ),
    (
        rules.unexplained_sleep,
        "tests/test_a.py",
        SLEEP + "    time.sleep(1)",
        SLEEP + "    time.sleep(1)  # the lease runs out",
    ),
    (
        rules.unexplained_sleep,
        "tests/test_a.py",
        SLEEP + "    time.sleep('# no comment')",
        SLEEP + "    # the lease runs out\n    time.sleep(1)",
    ),
]


@pytest.mark.parametrize(("rule", "path", "wrong", "right"), PLANTED)
def test_a_rule_catches_what_it_is_for(rule: Rule, path: str, wrong: str, right: str) -> None:
    assert [violation.rule for violation in rule(parse(path, wrong))] == [rule.__name__]
    if rule is rules.banned_name:
        path = "src/duly/outbox/relay.py"
    assert not list(rule(parse(path, right)))


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, *_ in PLANTED} == {*rules.HOUSE, *rules.PUBLIC, *rules.TESTS}


def test_a_docstring_does_not_count_as_length() -> None:
    text = LONG.replace("def f():\n", 'def f():\n    """One.\n\n    Two.\n    """\n', 1)
    assert not list(rules.function_length(parse("a.py", text.removesuffix("    a = 1\n"))))
    assert list(rules.function_length(parse("a.py", text)))


def test_the_command_line_and_the_tools_may_print() -> None:
    for path in ("src/duly/admin/cli/main.py", "tools/lock.py", "src/duly/testing/demo/airline.py"):
        assert not list(rules.printing(parse(path, "print(1)")))


def test_a_helper_of_a_test_need_not_assert() -> None:
    assert not list(rules.checks_nothing(parse("a.py", "def helper():\n  def test_like(): ...\n")))


def test_names_resolved_late_may_be_exported() -> None:
    text = "__all__ = ['App']\ndef __getattr__(name): ..."
    assert not list(rules.exports(parse("src/duly/__init__.py", text)))
