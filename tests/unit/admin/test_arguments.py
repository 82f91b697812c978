from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from duly.admin.cli.arguments import app_argument, app_then
from duly.admin.cli.main import cli


def leaves(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from leaves(inner, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(leaves(cli))
WITHOUT_APP = {"choose", "demo", "init"}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_APP))
def test_the_app_is_the_first_word_of_every_command_and_never_an_option(name: str) -> None:
    command = COMMANDS[name]
    words = command.collect_usage_pieces(click.Context(command))
    assert words[1].split()[0] == "[MODULE:APP]"
    assert not [p for p in command.params if "--app" in p.opts]


def call(*arguments: str, many: bool = False) -> Any:
    @click.command()
    @app_then("rows", metavar="ROW", kind=click.INT, many=many)
    @click.option("--reason")
    def command(*, app: str | None, rows: Any, reason: str | None) -> None:
        click.echo(json.dumps([app, rows, reason]))

    done = CliRunner().invoke(command, arguments)
    return json.loads(done.stdout) if done.exit_code == 0 else done.exit_code


def test_the_app_may_be_left_out() -> None:
    assert call("shop:app", "7") == ["shop:app", 7, None]
    assert call("7") == [None, 7, None]
    assert call("--reason", "a:b", "7") == [None, 7, "a:b"]
    assert call("7", "--reason", "a:b") == [None, 7, "a:b"]


def test_many_of_its_own() -> None:
    assert call("shop:app", "7", "8", many=True) == ["shop:app", [7, 8], None]
    assert call("7", "8", many=True) == [None, [7, 8], None]
    assert call("shop:app", many=True) == ["shop:app", [], None]
    assert call(many=True) == [None, [], None]


@pytest.mark.parametrize(
    "words", [(), ("shop:app",), ("7", "8"), ("7", "shop:app"), ("shop", "7"), ("a:b", "c:d")]
)
def test_anything_else_is_wrong_usage(words: tuple[str, ...]) -> None:
    assert call(*words) == 2


def test_an_app_alone() -> None:
    @click.command()
    @app_argument
    def command(*, app: str | None) -> None:
        click.echo(app)

    assert CliRunner().invoke(command, ["shop:app"]).stdout == "shop:app\n"
    assert CliRunner().invoke(command, ["shop:app", "x"]).exit_code == 2
