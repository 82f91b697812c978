"""Where a job delivers its file, as it is declared.

Owns the declarations and what is wrong with them; connecting belongs to the adapters.  The
invariant: no password is written into a declaration's repr or definition, and a server that cannot
be told from another is never declared: SFTP needs known hosts, FTP without TLS its own class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from duly.batch.delivery import Policy, Verify
from duly.batch.send import SendStep
from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry
from duly.kernel.durations import Duration, seconds
from duly.wire.urls import redact

if TYPE_CHECKING:
    from duly.batch.job import Job

__all__ = ["Ftp", "Ftps", "Local", "Sftp"]

_MARKER_BYTES_MAX = 40


@dataclass(frozen=True)
class _Destination:
    """What every place of delivery is asked.

    url: the folder. verify: the least that must be shown of the uploaded file before it gets its
    name: its ``size``, its last bytes (``tail``), its ``sha256`` (computed there where the server
    can, else read back), or that it was read back whole (``read-back``). if_exists: whether another
    file of that name is replaced. marker: an ending such as ``.done``; that file is written last
    and holds the SHA-256. timeout: how long the server may be silent. retry: of connections on
    which nothing got through.
    """

    url: str = field(repr=False)
    _: KW_ONLY
    verify: Verify = "tail"
    if_exists: Literal["refuse", "replace"] = "refuse"
    marker: str = ""
    timeout: Duration = "60s"
    retry: Retry = Retry(attempts=5, base="1s", max="30s")

    schemes: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.url.partition("://")[0].lower() not in self.schemes:
            wanted = " or ".join(f"{one}://" for one in self.schemes)
            raise _wrong(f"{kind} wants a URL that begins with {wanted}, not {redact(self.url)}")
        if self.verify not in get_args(Verify):
            raise _wrong(f"{kind}: verify must be one of {', '.join(get_args(Verify))}")
        if self.if_exists not in ("refuse", "replace"):
            raise _wrong(f"{kind}: if_exists must be 'refuse' or 'replace'")
        ending, size = self.marker, len(self.marker.encode(errors="replace"))
        if ending and (not ending.startswith(".") or "/" in ending or size > _MARKER_BYTES_MAX):
            raise _wrong(f"{kind}: marker is an ending such as '.done'")
        self.retry.refuse_on(f"{kind}: retry")

    def definition(self) -> str:
        """What shapes a delivery, without secrets."""
        parts = (redact(self.url), self.verify, self.if_exists, self.marker)
        return f"{type(self).__name__}{parts}"

    def step(self, job: Job) -> SendStep:
        """The step of a job. Raises ConfigurationError for a bad URL or option."""
        target = job.places.file_target(self.url, **self._options())
        replace = self.if_exists == "replace"
        policy = Policy(verify=self.verify, replace=replace, marker=self.marker)
        return SendStep(target, policy=policy, retry=self.retry)

    def _options(self) -> Mapping[str, Any]:
        return {"timeout_seconds": seconds(self.timeout, "timeout")}


@dataclass(frozen=True)
class Sftp(_Destination):
    """A folder of an SSH server: ``Sftp("sftp://user@host/in", known_hosts="known_hosts", ...)``.

    The path of the URL is absolute; ``/~/in`` is below the home folder. known_hosts: a file in
    OpenSSH's form that names the server; an unknown or changed key ends the run. key: a private
    key's file. key_passphrase_env, password_env: environment variables that hold those secrets.
    ciphers: names in order of preference, OpenSSH's where empty.
    """

    _: KW_ONLY
    known_hosts: str | Path
    key: str | Path | None = None
    key_passphrase_env: str = ""
    password_env: str = ""
    ciphers: tuple[str, ...] = ()

    schemes = ("sftp",)

    def _options(self) -> Mapping[str, Any]:
        named = ("known_hosts", "key", "key_passphrase_env", "password_env", "ciphers")
        return {**super()._options(), **{name: getattr(self, name) for name in named}}


@dataclass(frozen=True)
class Ftps(_Destination):
    """A folder of an FTP server with TLS for commands and data.

    ca_file: certificates to trust besides the system's. implicit: TLS from the first byte, as on
    port 990, instead of AUTH TLS. password_env: the environment variable that holds the password.
    """

    _: KW_ONLY
    ca_file: str | Path | None = None
    implicit: bool = False
    password_env: str = ""

    schemes = ("ftps",)

    def _options(self) -> Mapping[str, Any]:
        named = ("ca_file", "implicit", "password_env")
        return {**super()._options(), **{name: getattr(self, name) for name in named}}


@dataclass(frozen=True)
class Ftp(_Destination):
    """A folder of an FTP server without TLS: anybody between can read and change the file.

    password_env: the environment variable that holds the password.
    """

    _: KW_ONLY
    password_env: str = ""

    schemes = ("ftp",)

    def _options(self) -> Mapping[str, Any]:
        return {**super()._options(), "password_env": self.password_env}


@dataclass(frozen=True)
class Local(_Destination):
    """A folder of this machine, as ``file:///srv/out``. What is there is on the disk."""

    schemes = ("file",)


def _wrong(text: str) -> ConfigurationError:
    return ConfigurationError(text, code="BATCH_DESTINATION")
