"""``manage.py duly ...``: the command line of duly, with the App of ``settings.DULY``.

Owns nothing of its own: every word after ``duly`` goes to the command line as it is, but for
Django's ``--settings`` and ``--pythonpath``, which have done their work by then.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from duly.frameworks.django.configuration import app_name

__all__ = ["Command"]


class Command(BaseCommand):  # type: ignore[misc]  # Django ships no types
    """Runs a command of duly's."""

    help = "Runs a command of duly: manage.py duly run, manage.py duly outbox list ..."

    def run_from_argv(self, argv: list[str]) -> None:
        """From the shell: the exit code is the command's."""
        known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        known.add_argument("--settings")
        known.add_argument("--pythonpath")
        sys.exit(_invoke(known.parse_known_args(argv[2:])[1]))

    def add_arguments(self, parser: Any) -> None:
        """Anything."""
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def handle(self, *_: Any, arguments: Sequence[str], **__: Any) -> None:
        """From ``call_command("duly", "db", "status")``. Raises CommandError."""
        code = _invoke(arguments)
        if code:
            raise CommandError(f"duly {' '.join(arguments)} ended with {code}", returncode=code)


def _invoke(arguments: Sequence[str]) -> int:
    from duly.admin.cli.main import invoke

    os.environ.setdefault("DULY_APP", app_name())
    return invoke(arguments)
