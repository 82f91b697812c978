"""The house rules that a program can check, each a function from a parsed file to what breaks it.

A rule reads one file and nothing else, so that a planted violation in a string shows that it bites
(``test_rules.py``).  What the style checker and the import checker do already is not repeated.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import NamedTuple

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
POSITIONAL_MAX = 3
BANNED_NAMES = frozenset({"base", "common", "helpers", "manager", "types", "utils"})
MAY_PRINT = ("src/duly/admin/", "src/duly/testing/demo", "bench/", "tools/")
CHECKS = ("assert", "check", "raises", "fail", "warns")
UNFINISHED = re.compile(r"\b(FIX" r"ME|TO" r"DO|XX" r"X)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """One file: its path from the top of the checkout, its text, its tree."""

    path: str
    text: str
    tree: ast.Module


class Violation(NamedTuple):
    """A broken rule. where: the path, and the name within it where there is one."""

    rule: str
    where: str
    detail: str


Rule = Callable[[Source], Iterator[Violation]]


def parse(path: str, text: str) -> Source:
    """A file ready to be checked."""
    return Source(path, text, ast.parse(text))


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """Every function with its name within the module, methods and nested ones too."""

    def below(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            inner = names
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = (*names, child.name)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield ".".join(inner), child
            yield from below(child, inner)

    return below(tree, ())


def module_docstring(source: Source) -> Iterator[Violation]:
    """A module says what it owns before its first line of code; an empty file says nothing."""
    if source.tree.body and not ast.get_docstring(source.tree):
        yield Violation("module_docstring", source.path, "does not open with a docstring")


def module_length(source: Source) -> Iterator[Violation]:
    """A module is at most 600 lines."""
    lines = source.text.count("\n")
    if lines > MODULE_LINES_MAX:
        yield Violation("module_length", source.path, f"{lines} lines, at most {MODULE_LINES_MAX}")


def function_length(source: Source) -> Iterator[Violation]:
    """A function is at most 70 lines, its docstring and decorators not counted."""
    for name, node in functions(source.tree):
        first = node.body[0]
        documented = ast.get_docstring(node, clean=False) is not None
        docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
        lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
        if lines > FUNCTION_LINES_MAX:
            where = f"{source.path}::{name}"
            yield Violation(
                "function_length", where, f"{lines} lines, at most {FUNCTION_LINES_MAX}"
            )


def positional_parameters(source: Source) -> Iterator[Violation]:
    """At most three parameters can be given by position; self and cls are not counted."""
    methods = {
        id(child)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
        for child in node.body
    }
    for name, node in functions(source.tree):
        static = any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
        )
        bound = id(node) in methods and not static
        count = len(node.args.posonlyargs) + len(node.args.args) - bound
        if count > POSITIONAL_MAX:
            where = f"{source.path}::{name}"
            yield Violation("positional_parameters", where, f"{count}, at most {POSITIONAL_MAX}")


def banned_name(source: Source) -> Iterator[Violation]:
    """A module or room is named after what it is, never after being useful."""
    parts = source.path.removesuffix(".py").split("/")
    for word in (word for part in parts for word in part.split("_")):
        if word in BANNED_NAMES:
            yield Violation("banned_name", source.path, f"is named {word!r}")


def printing(source: Source) -> Iterator[Violation]:
    """Only the command line, the demo and the tools print."""
    if source.path.startswith(MAY_PRINT):
        return
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            yield Violation("printing", source.path, f"prints in line {node.lineno}")


def exports(source: Source) -> Iterator[Violation]:
    """A public module lists its names in ``__all__``: constants, classes, the rest; each exists."""
    file = source.path.rpartition("/")[2]
    if not source.tree.body or (file.startswith("_") and file != "__init__.py"):
        return
    listed = _all_of(source.tree)
    if listed is None:
        yield Violation("exports", source.path, "has no __all__ that is a list of strings")
        return
    if listed != sorted(listed, key=_export_order):
        yield Violation("exports", source.path, "__all__ is not sorted")
    if len(set(listed)) != len(listed):
        yield Violation("exports", source.path, "__all__ names something twice")
    missing = set(listed) - _top_names(source.tree)
    if missing and not _has(source.tree, "__getattr__"):
        yield Violation(
            "exports", source.path, f"__all__ names {sorted(missing)}, not defined here"
        )


def _all_of(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign)
            if isinstance(node.value, ast.List | ast.Tuple):
                values = [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
                if len(values) == len(node.value.elts):
                    return [str(value) for value in values]
    return None


def _export_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    parts = [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]
    return kind, parts


def _has(tree: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def _top_names(tree: ast.Module) -> set[str]:
    """The names a module defines or imports outside its functions and classes."""
    found: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    for node in pending:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        pending += ast.iter_child_nodes(node)
    return found


def unfinished(source: Source) -> Iterator[Violation]:
    """No note about work that is left."""
    for number, line in enumerate(source.text.splitlines(), 1):
        if UNFINISHED.search(line):
            yield Violation("unfinished", source.path, f"line {number}: {line.strip()[:60]}")


def empty_assert(source: Source) -> Iterator[Violation]:
    """An assert can fail: not of a constant, and not of a tuple, which is always true."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assert) and (
            (isinstance(node.test, ast.Constant) and bool(node.test.value))
            or (isinstance(node.test, ast.Tuple) and node.test.elts)
        ):
            yield Violation("empty_assert", source.path, f"line {node.lineno} cannot fail")


def checks_nothing(source: Source) -> Iterator[Violation]:
    """A test asserts, expects an error, or calls something named assert_... or check_..."""
    for name, node in functions(source.tree):
        top_level = "." not in name or name.split(".")[-2].startswith("Test")
        if node.name.startswith("test") and top_level and not any(map(_checks, ast.walk(node))):
            yield Violation("checks_nothing", f"{source.path}::{name}", "asserts nothing")


def _checks(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name.lstrip("_").startswith(CHECKS)


def unexplained_sleep(source: Source) -> Iterator[Violation]:
    """A test that sleeps says why, in a comment on that line or the one above."""
    if not source.path.rpartition("/")[2].startswith(("test_", "conftest")):
        return  # a program that tests run may pace itself
    commented = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id, node.func.attr) == ("time", "sleep")
            and not {node.lineno, node.lineno - 1} & commented
        ):
            yield Violation(
                "unexplained_sleep", source.path, f"line {node.lineno} sleeps without a reason"
            )


HOUSE: tuple[Rule, ...] = (
    module_docstring,
    module_length,
    function_length,
    positional_parameters,
    banned_name,
    printing,
    unfinished,
)
PUBLIC: tuple[Rule, ...] = (exports,)
TESTS: tuple[Rule, ...] = (unfinished, empty_assert, checks_nothing, unexplained_sleep)
