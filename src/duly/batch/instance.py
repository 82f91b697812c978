"""What makes an instance of a job: its parameters, in one form everywhere.

Owns the canonical text of parameters, the id made of it and the names of files derived from it.
The invariants: equal parameters give the same id in every process, version and time zone; nothing
here asks what time it is, so a run that goes on tomorrow writes the file of today; and a file's
name made of parameters stays a name - it never leaves its folder.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from duly.errors import ConfigurationError

__all__ = [
    "KINDS",
    "Window",
    "canonical",
    "check_params",
    "file_name",
    "instance_id",
    "parse_params",
    "text_of",
    "values_of",
]

NAME_BYTES_MAX = 200
TEXT_BYTES_MAX = 200
_ID_DIGITS = 12
_LEAVES = re.compile(r"[/\\]")


class Window(NamedTuple):
    """A span of time: from ``start`` on, up to and without ``end``; both know their time zone."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        return f"{_moment(self.start)}/{_moment(self.end)}"


def _moment(value: datetime) -> str:
    if value.tzinfo is None:
        raise ConfigurationError("a time without a time zone names no moment", code="BATCH_PARAMS")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _moment_of(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _window_of(text: str) -> Window:
    start, _, end = text.partition("/")
    return Window(_moment_of(start), _moment_of(end))


def _whole_of(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
        raise ValueError("no whole number")
    return int(text)


KINDS: dict[type, Any] = {
    str: str,
    int: _whole_of,
    date: date.fromisoformat,
    datetime: _moment_of,
    Decimal: Decimal,
    UUID: UUID,
    Window: _window_of,
}


def text_of(value: object) -> str:
    """The canonical text of one parameter. Raises ConfigurationError (BATCH_PARAMS)."""
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, Decimal):
        return format(value.normalize(), "f") if value else "0"
    text = value.isoformat() if isinstance(value, date) else str(value)
    if len(text.encode(errors="replace")) > TEXT_BYTES_MAX or not text.isprintable() or not text:
        what = f"{ascii(text)[:80]} is no parameter: printable text of 1 to {TEXT_BYTES_MAX} bytes"
        raise ConfigurationError(what, code="BATCH_PARAMS")
    return text


def check_params(kinds: Mapping[str, type], params: Mapping[str, object]) -> dict[str, object]:
    """The parameters in the order in which they are declared.

    Raises ConfigurationError (BATCH_PARAMS): one is missing, unknown, or of another type.
    """
    missing, unknown = sorted(set(kinds) - set(params)), sorted(set(params) - set(kinds))
    if missing or unknown:
        said = [f"{name} is missing" for name in missing]
        said += [f"{ascii(name)[:60]} is unknown" for name in unknown]
        wanted = ", ".join(kinds) or "none"
        raise ConfigurationError(f"{'; '.join(said)}; wanted: {wanted}", code="BATCH_PARAMS")
    for name, kind in kinds.items():
        if type(params[name]) is not kind:
            found = type(params[name]).__name__
            text = f"{name} is a {found}, wanted is a {kind.__name__}"
            raise ConfigurationError(text, code="BATCH_PARAMS")
        text_of(params[name])
    return {name: params[name] for name in kinds}


def parse_params(kinds: Mapping[str, type], texts: Mapping[str, str]) -> dict[str, object]:
    """Parameters from text: of a command line, a request, a row. Raises as ``check_params``."""
    values: dict[str, object] = {}
    for name, text in texts.items():
        if name not in kinds:
            values[name] = text  # told below, with what is missing
            continue
        try:
            values[name] = KINDS[kinds[name]](text)
        except (ValueError, ArithmeticError, TypeError) as error:
            shown = f"{name}={ascii(text)[:60]} is no {kinds[name].__name__}"
            raise ConfigurationError(shown, code="BATCH_PARAMS") from error
    return check_params(kinds, values)


def canonical(params: Mapping[str, object]) -> str:
    """Parameters as the one JSON text that identifies them."""
    texts = {name: text_of(value) for name, value in params.items()}
    return json.dumps(texts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def values_of(kinds: Mapping[str, type], stored: str) -> dict[str, object]:
    """The parameters of a row. Raises ConfigurationError where the job has others by now."""
    return parse_params(kinds, json.loads(stored))


def instance_id(job: str, params: Mapping[str, object]) -> str:
    """The id of an instance: the job's name and a digest of its parameters; fit for a folder."""
    digest = sha256(f"{len(job)}:{job}{canonical(params)}".encode()).hexdigest()
    return f"{job}-{digest[:_ID_DIGITS]}"


def file_name(template: str, params: Mapping[str, object]) -> str:
    """A name such as ``settlement-{day}.csv`` with the parameters put in.

    ``{day:%Y%m%d}`` formats a date; ``:`` and "/" of times and windows become "_", as no file
    system wants them. Raises ConfigurationError (BATCH_NAME): an unknown parameter, or a name that
    is empty, too long, hidden or would leave its folder.
    """
    parts: list[str] = []
    try:
        for literal, field, spec, conversion in string.Formatter().parse(template):
            parts.append(literal)
            if field is not None:
                parts.append(_field(params[field], spec or "", plain=conversion is None))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        text = f"{ascii(template)[:80]} cannot be filled in with {', '.join(params) or 'nothing'}"
        raise ConfigurationError(text, code="BATCH_NAME") from error
    name = "".join(parts)
    size = len(name.encode(errors="replace"))
    hidden = name.startswith(".") or not name.isprintable()
    if not 0 < size <= NAME_BYTES_MAX or _LEAVES.search(name) or hidden:
        raise ConfigurationError(f"{ascii(name)[:80]} is no name of a file", code="BATCH_NAME")
    return name


def _field(value: object, spec: str, *, plain: bool) -> str:
    if not plain:
        raise ValueError("conversions such as !r are not for names")
    if spec and not isinstance(value, Window):
        return format(value, spec)
    text = text_of(value)
    return text.translate({ord(":"): "_", ord("/"): "_"}) if not isinstance(value, str) else text
