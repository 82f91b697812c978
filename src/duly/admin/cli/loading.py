"""Which App a command works on, and how it is imported.

Owns the text ``MODULE:APP``: ``shop:app`` is the attribute ``app`` of the module ``shop``, looked
for in the current folder first, as the interpreter would.  The invariant: whatever goes wrong while
somebody else's module is imported ends in one error that says which step failed - never in a
traceback, and never in half a program running.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from duly.errors import ConfigurationError

if TYPE_CHECKING:
    from duly.app import App

__all__ = ["load_app"]

_SPEC = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", re.ASCII)


def load_app(spec: str) -> App:
    """Import ``MODULE:APP``.

    Raises ConfigurationError with one of the codes APP_SPEC (not of that form), APP_MODULE (no such
    module), APP_IMPORT (importing it failed), APP_ATTRIBUTE (it has no such name), APP_TYPE (that
    is no App).
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        text = f"{ascii(spec)[:80]} is not of the form MODULE:APP, such as shop:app"
        raise ConfigurationError(text, code="APP_SPEC")
    found = _import(match[1])
    for name in match[2].split("."):
        if not hasattr(found, name):
            text = f"{match[1]} has no attribute {match[2]!r}"
            raise ConfigurationError(text, code="APP_ATTRIBUTE")
        found = getattr(found, name)
    from duly.app import App

    if not isinstance(found, App):
        kind = type(found).__qualname__
        raise ConfigurationError(f"{spec} is of type {kind}, not a duly App", code="APP_TYPE")
    return found


def _import(module: str) -> object:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            text = f"there is no module {error.name!r} here ({folder}) nor on the import path"
            raise ConfigurationError(text, code="APP_MODULE") from error
        raise _failed(module, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(module, error) from error


def _failed(module: str, error: BaseException) -> ConfigurationError:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    line = " ".join(str(error).split())[:200]
    text = f"importing {module} raised {type(error).__name__}{where}: {line}"
    return ConfigurationError(text, code="APP_IMPORT")
