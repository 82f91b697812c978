"""Settings: arguments before ``DULY_*`` variables before ``duly.toml`` before the defaults.

Owns one table of keys - the fields of ``Settings`` with their kind, default and meaning - from
which validation, the command line's help and the docs are made.  The invariant: what ``load``
returns is complete and inside its limits, and a key nobody knows is an error that names the nearest
one, because a misspelt setting is a setting that is silently not in force.  Everything wrong is
reported together, and no value of a URL is ever shown unredacted.  Reading happens at start, never
at import.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from duly.errors import ConfigurationError, InvalidNameError
from duly.kernel.durations import seconds
from duly.kernel.lease import check_lease
from duly.kernel.names import check_sql_name
from duly.wire.urls import redact

__all__ = ["DEFAULT_PATH", "Key", "Settings", "chosen_app", "keys", "load"]

DEFAULT_PATH = "duly.toml"

_PREFIX = "DULY_"
_NOT_OURS = "DULY_TEST_"  # where test servers are; never a setting
_APP = "app"  # which App the command line works on: stands beside the settings, is none of them
_FILE_BYTES_MAX = 1_000_000
_URL_CHARACTERS_MAX = 2_000
_PATH_CHARACTERS_MAX = 1_000


class Key(NamedTuple):
    """One line of the table of settings. default: as it is written in ``duly.toml``."""

    name: str
    kind: str
    default: Any
    meaning: str


# --- kinds: each turns what was written into what is kept, or raises ValueError saying what it want
def _url(value: object) -> str:
    if not isinstance(value, str) or not 3 < len(value) <= _URL_CHARACTERS_MAX:
        raise ValueError("must be a URL such as sqlite:///duly.db")
    try:
        scheme = urlsplit(value).scheme
    except ValueError:  # its text may quote the password
        raise ValueError("is not a valid URL") from None
    if (
        not scheme
        or "://" not in value
        or "%00" in value
        or not value.isprintable()
        or " " in value
    ):
        raise ValueError("must be a URL such as sqlite:///duly.db")
    return value


def _optional_url(value: object) -> str | None:
    return None if value is None or value == "" else _url(value)


def _whole(most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"must be a whole number from 1 to {most}")
        return value

    return parse


def _duration(value: Any) -> float:
    return seconds(value, "the value")


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError("must be true or false")


def _sql_name(value: Any) -> str:
    return check_sql_name(value, "table prefix")


def _path(value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not 0 < len(text) <= _PATH_CHARACTERS_MAX:
        raise ValueError("must be the path of a folder")
    if not text.isprintable():
        raise ValueError("must be the path of a folder, without control characters")
    return text


def _reasons(value: object) -> Mapping[str, str]:
    pairs = list(value.items()) if isinstance(value, Mapping) else [("", "")]
    if all(isinstance(text, str) and text.strip() for pair in pairs for text in pair):
        return dict(pairs)
    raise ValueError('must map codes to reasons: {"CODE": "why it is wanted"}')


class _Kind(NamedTuple):
    word: str
    parse: Callable[[Any], Any]


_URL = _Kind("url", _url)
_OPTIONAL_URL = _Kind("url", _optional_url)
_NAME = _Kind("name", _sql_name)
_PATH = _Kind("path", _path)
_DURATION = _Kind("duration", _duration)
_FLAG = _Kind("flag", _flag)
_REASONS = _Kind("reasons", _reasons)


def _number(most: int) -> _Kind:
    return _Kind("number", _whole(most))


def _key(kind: _Kind, default: Any, meaning: str) -> Any:
    """One field of Settings; the default is kept as written and parsed like any other value."""
    metadata = {"kind": kind.word, "parse": kind.parse, "written": default, "meaning": meaning}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=kind.parse(default), metadata=metadata)


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """What an App runs with; durations are seconds. Made by ``load``."""

    database: str = _key(
        _URL,
        "sqlite:///duly.db",
        "the database that holds the App's tables and its users' data",
    )
    broker: str = _key(_URL, "embedded:///duly-broker.db", "the broker that carries the messages")
    listen_url: str | None = _key(
        _OPTIONAL_URL,
        None,
        "a direct connection for wake-ups when the database is behind a pooler",
    )
    table_prefix: str = _key(_NAME, "duly_", "what the names of duly's tables begin with")
    payload_bytes_max: int = _key(
        _number(100_000_000), 1_000_000, "the largest payload accepted, in bytes"
    )
    batch_size: int = _key(
        _number(10_000), 1_000, "how many messages are read at once; a publish has no more"
    )
    workers: int = _key(_number(1_000), 4, "how many handlers of this process run at once")
    relay_in_flight: int = _key(
        _number(64), 4, "how many batches of a relay may be unconfirmed at once"
    )
    lease_ttl: float = _key(
        _DURATION, "5s", "how long a crashed process keeps others out of its work"
    )
    renew_every: float = _key(
        _DURATION, "1.5s", "how often leases are renewed; three fit into lease_ttl"
    )
    poll_every: float = _key(_DURATION, "1s", "how long work may wait when its wake-up was lost")
    send_timeout: float = _key(_DURATION, "3s", "how long a confirm is waited for; below lease_ttl")
    handler_timeout: float = _key(
        _DURATION,
        "5m",
        "hard deadline of a handler; the process ends when one runs past it",
    )
    lock_timeout: float = _key(_DURATION, "5s", "how long a statement of ours waits for a lock")
    drain_timeout: float = _key(_DURATION, "30s", "how long a stop waits for work in hand")
    batch_spool: str = _key(
        _PATH, "duly-spool", "the folder of the files of batch runs; shared where hosts take over"
    )
    batch_runs: int = _key(_number(64), 2, "how many batch runs this process works on at once")
    batch_keep: float = _key(
        _DURATION, "7d", "how long the files of batch runs that ended are kept, to send them again"
    )
    transaction_warning: float = _key(
        _DURATION, "1s", "how long a transaction may be open around a call before that is told"
    )
    global_tx_timeout: float = _key(
        _DURATION, "5s", "how long a global transaction may prepare; then it is rolled back"
    )
    dedupe_window: float = _key(
        _DURATION,
        "7d",
        "how long it is remembered what was handled; older messages are held",
    )
    keep_sent: bool = _key(
        _FLAG, False, "keep sent and handled rows as history (reconcile needs it)"
    )
    allow_unsafe: Mapping[str, str] = _key(
        _REASONS, {}, "findings accepted on purpose, code -> reason; in code only"
    )

    def __repr__(self) -> str:
        shown = (f"{key.name}={_shown(getattr(self, key.name), key.kind)}" for key in keys())
        return f"Settings({', '.join(shown)})"


def keys() -> list[Key]:
    """The table of settings, in the order in which they are documented."""
    return [
        Key(f.name, f.metadata["kind"], f.metadata["written"], f.metadata["meaning"])
        for f in fields(Settings)
    ]


def load(
    arguments: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Settings:
    """The settings in force.

    arguments: from code; one that is None counts as not given. environ: by default the process's.
    path: of the file; by default ``duly.toml`` in the current folder, if there is one. Raises
    ConfigurationError that lists everything wrong at once.
    """
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    sources = [
        ("argument {}", given),
        ("variable DULY_{}", _from_environ(os.environ if environ is None else environ)),
        ("{} in the file", {k: v for k, v in _from_file(path).items() if k != _APP}),
    ]
    problems: list[str] = []
    chosen: dict[str, Any] = {}
    for where, values in sources:
        for name, value in values.items():
            shown = where.format(name.upper() if "DULY_" in where else name)
            _take(name, value, shown=shown, chosen=chosen, problems=problems)
    if not problems:
        settings = Settings(**chosen)
        problems = _contradictions(settings)
    if problems:
        raise ConfigurationError("; ".join(problems))
    return settings


def chosen_app(
    *, environ: Mapping[str, str] | None = None, path: str | os.PathLike[str] | None = None
) -> str | None:
    """The App named by ``DULY_APP`` or by ``app = "MODULE:APP"`` in the file; None where neither
    does. Raises ConfigurationError.
    """
    given = (os.environ if environ is None else environ).get("DULY_APP")
    chosen = given or _from_file(path).get(_APP)
    if chosen is not None and not isinstance(chosen, str):
        raise ConfigurationError(f"{_APP} in the file must be text: 'MODULE:APP'")
    return chosen


def _take(
    name: str, value: Any, *, shown: str, chosen: dict[str, Any], problems: list[str]
) -> None:
    known = {f.name: f.metadata for f in fields(Settings)}
    if name not in known:
        wanted = name.lower().replace("-", "_")[:100]
        from difflib import get_close_matches

        near = get_close_matches(wanted, known, n=1, cutoff=0.0)
        problems.append(f"{ascii(shown)[1:-1][:140]} is not a setting; the nearest is {near[0]}")
    elif name == "allow_unsafe" and not shown.startswith("argument"):
        problems.append(f"{shown}: allow_unsafe may only stand in the code, where it is reviewed")
    else:
        try:
            parsed = known[name]["parse"](value)
        except (ConfigurationError, InvalidNameError) as error:
            problems.append(f"{shown}: {error.detail}")
        except ValueError as error:
            problems.append(f"{shown} {error}")
        else:
            chosen.setdefault(name, parsed)


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(_PREFIX) and not name.startswith(_NOT_OURS) and name != "DULY_APP"
    }


def _from_file(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    place = Path(path or DEFAULT_PATH)
    if path is None and not place.exists():
        return {}
    try:
        with place.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigurationError(f"{place} cannot be read: {error.strerror}") from error
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigurationError(f"{place} is larger than {_FILE_BYTES_MAX} bytes")
    import tomllib

    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{place} is not UTF-8 (byte {error.start})") from error
    # Also a plain ValueError: a number of more than 4,300 digits.
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{place} is not TOML: {str(error)[:200]}") from error


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    try:
        check_lease(settings.lease_ttl, settings.renew_every)
    except ConfigurationError as error:
        problems.append(error.detail)
    if settings.send_timeout >= settings.lease_ttl:
        problems.append(
            "send_timeout must be shorter than lease_ttl: a confirm past the lease proves nothing"
        )
    return problems


def _shown(value: object, kind: str) -> str:
    return repr(redact(value)) if kind == "url" and isinstance(value, str) else repr(value)
