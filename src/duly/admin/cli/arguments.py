"""The words of a command: the App first, then the command's own.

Owns one rule for every command: its first word may be ``MODULE:APP``; left out, ``DULY_APP`` or
``app`` in ``duly.toml`` names the App.  Nothing else that a command takes has a colon in it - rows
are numbers, topics and groups are names - so a word that has one can only be an App.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

__all__ = ["app_argument", "app_then"]

Command = Callable[..., Any]
_APP = "[MODULE:APP]"


def app_argument(command: Command) -> Command:
    """``[MODULE:APP]`` and nothing else, given to the command as ``app``."""
    return click.argument("app", metavar=_APP, required=False)(command)


def app_then(
    name: str, *, metavar: str, kind: click.ParamType[Any] = click.STRING, many: bool = False
) -> Callable[[Command], Command]:
    """``[MODULE:APP]``, given as ``app``, and the command's own argument, given as ``name``.

    many: any number of them, as a tuple; exactly one otherwise.
    """

    def add(command: Command) -> Command:
        @wraps(command)
        def run(*, words: tuple[str, ...], **options: Any) -> Any:
            first = words[0] if words and ":" in words[0] else None
            own = [kind.convert(word, None, None) for word in words[first is not None :]]
            if not many:
                _check_one(own, metavar)
            return command(**{"app": first, name: tuple(own) if many else own[0]}, **options)

        shown = f"[{metavar}]..." if many else metavar
        return click.argument("words", nargs=-1, metavar=f"{_APP} {shown}")(run)

    return add


def _check_one(own: Sequence[Any], metavar: str) -> None:
    if not own:
        raise click.UsageError(f"missing argument {metavar}")
    if len(own) > 1:
        raise click.UsageError(
            f"one {metavar}, and before it at most MODULE:APP; not {' '.join(map(str, own))!r:.80}"
        )
