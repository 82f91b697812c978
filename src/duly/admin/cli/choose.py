"""``duly choose``: questions in, a way of integrating out.

Asks what the flags leave open; where nobody can be asked, the first open question is a usage error
that names its flag.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from duly.admin.choosing import QUESTIONS, Question, Way, choose
from duly.admin.cli.output import document, json_option, write

__all__ = ["choose_command"]

F = TypeVar("F", bound=Callable[..., Any])


def _questions(command: F) -> F:
    for question in reversed(QUESTIONS):
        option = click.option(
            f"--{question.name}", type=click.Choice(("yes", "no")), help=question.text
        )
        command = option(command)
    return command


@click.command("choose")
@_questions
@json_option
def choose_command(*, as_json: bool, **given: str | None) -> None:
    """Which way of integrating fits; asks what the flags leave open."""
    answers = {name: answer == "yes" for name, answer in given.items() if answer is not None}
    while isinstance(found := choose(answers), Question):
        if as_json or not sys.stdin.isatty():
            raise click.UsageError(f"{found.text} Say --{found.name} yes or --{found.name} no.")
        answers[found.name] = click.confirm(found.text, err=True)
    if as_json:
        document({"answers": answers, "recommendation": found})
    else:
        _show(found)


def _show(way: Way) -> None:
    write(f"Use {way.title}.")
    for word, text in (("why", way.reason), ("promise", way.guarantee), ("cost", way.cost)):
        write(f"  {word:8} {text[0].upper()}{text[1:].rstrip('.')}.")
    write("\n" + "\n".join(f"    {line}".rstrip() for line in way.snippet.splitlines()) + "\n")
    write(f"  read {way.page}; run {way.example}")
