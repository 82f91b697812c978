"""A file to an SSH server: beside OpenSSH's own client, and what a resume costs.

Both sides use the same cipher and have the server sync the file.  Ours besides sends to a temporary
name, stores a checkpoint every 8 MiB, compares the last 1 MiB and renames; what arrived is compared
byte for byte after each measurement, outside of it.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import file_digest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from bench.measure import Row, Sample, Scale, Sides
from bench.places import folder, server
from bench.process import run_side
from duly.batch.manifest import Manifest, write_manifest

__all__ = ["ROWS"]

FILE_BYTES = 1 << 30
PIECE_BYTES = 1 << 20
CIPHER = "aes128-gcm@openssh.com"
NAME = "settlement.csv"
STOP_AT = 0.99


class _Ground:
    """A sealed file here, and a folder of its own on the server."""

    def __init__(self, home: Path, size: int) -> None:
        self._home, self._size = home, size
        url = urlsplit(server("DULY_TEST_SFTP"))
        self.there = Path(url.path) / f"bench-{uuid4().hex[:12]}"
        self.there.mkdir()
        self.there.chmod(0o777)  # the server runs as another user
        self._url = url._replace(path=str(self.there)).geturl()
        self._file = home / "sealed.csv"
        with self._file.open("wb") as file:
            for _ in range(0, size, PIECE_BYTES):
                file.write(os.urandom(PIECE_BYTES))
            file.truncate(size)
        with self._file.open("rb") as file:
            self._digest = file_digest(file, "sha256").hexdigest()

    def send(self, module: str, *, wire: bool = False, stop_at: float = 0.0) -> Sample:
        """Deliver it once; it must have arrived whole."""
        spool = self._home / f"spool-{uuid4().hex[:8]}"
        spool.mkdir()
        os.link(self._file, spool / "sealed.csv")
        sealed = spool / "sealed.csv"
        write_manifest(Manifest(sealed, NAME, self._size, self._digest, 0, ()))
        given: dict[str, Any] = {
            "server": self._url,
            "key": server("DULY_TEST_SFTP_KEY"),
            "known_hosts": server("DULY_TEST_SFTP_KNOWN_HOSTS"),
            "cipher": CIPHER,
            "file": str(sealed),
            "name": NAME,
            "size": self._size,
            "spool": str(spool),
            "wire": wire,
            "stop_at": stop_at,
        }
        try:
            sample = run_side(module, **given)
            if not filecmp.cmp(self._file, self.there / NAME, shallow=False):
                raise RuntimeError("what arrived is not what was sent")
        finally:
            shutil.rmtree(spool)
            for left in self.there.iterdir():
                left.unlink()
        return sample


@contextmanager
def _ground(scale: Scale) -> Iterator[_Ground]:
    with folder() as home:
        ground = _Ground(home, scale.of(FILE_BYTES, least=64 << 20))
        try:
            yield ground
        finally:
            shutil.rmtree(ground.there)


@contextmanager
def _speed(scale: Scale) -> Iterator[Sides]:
    with _ground(scale) as ground:
        ours = partial(ground.send, "ours.send")
        if shutil.which("sftp") is None:
            yield Sides(ours=ours, void="sftp of OpenSSH is not installed")
            return
        yield Sides(ours=ours, reference=partial(ground.send, "reference.batch_sftp"))


@contextmanager
def _resume(scale: Scale) -> Iterator[Sides]:
    with _ground(scale) as ground:
        yield Sides(
            ours=partial(ground.send, "ours.send", wire=True, stop_at=STOP_AT),
            reference=partial(ground.send, "ours.send", wire=True),
        )


ROWS = (
    Row(
        "batch sftp openssh",
        "MB/s",
        "OpenSSH sftp put with fsync, same cipher; ours verifies size and tail window",
        _speed,
    ),
    Row(
        "batch resume at 99 percent",
        "MB on the wire",
        "a full upload, both with handshake and what is read back",
        _resume,
        falls=True,
    ),
)
