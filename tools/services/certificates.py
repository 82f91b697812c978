"""A key and its certificate for this machine, as servers with TLS want them.

Good for a month: a server of the tests does not live that long.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tools.services.processes import ServerFailedError

__all__ = ["make"]

COMMAND = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost "
    "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
)


def make(folder: Path) -> None:
    """Write ``key.pem``, ``certificate.pem``, and both in one as ``tls.pem``. Raises
    ServerFailedError.
    """
    parts = [folder / name for name in ("key.pem", "certificate.pem")]
    command = [*COMMAND.split(), "-keyout", str(parts[0]), "-out", str(parts[1])]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerFailedError(f"a certificate could not be made: {error}") from error
    (folder / "tls.pem").write_text("".join(part.read_text() for part in parts))
