"""Makes ``.venv-peers``: the packages that ``make bench`` compares with, apart from our own.

They are pinned in the section ``peers`` of ``constraints.txt`` and installed when they are first
wanted, or their pins have changed.  Invariant: what ``peers_python`` returns has exactly these
versions; an environment that a stop left half made is made again.  Leaves out what is done with
them (``bench/reference/peer_*.py``).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tools.environment import ROOT, covered, install_pins, make_venv, sections

__all__ = ["PEERS", "PeersMissingError", "peers_python"]

PEERS = ROOT / ".venv-peers"


class PeersMissingError(Exception):
    """The peers cannot be installed; the text says why."""


def peers_python(place: Path = PEERS) -> Path:
    """The Python that has the peers, installed first where they are not there yet.

    Raises PeersMissingError. Idempotent.
    """
    wanted = sections((ROOT / "constraints.txt").read_text())["peers"]
    python, done = place / "bin" / "python", place / "pins"
    pins = "\n".join(wanted)
    if python.exists() and done.exists() and done.read_text() == pins:
        return python
    print(f"installing the peers into {place.name} ...", flush=True)
    try:
        done.unlink(missing_ok=True)
        make_venv(place)
        install_pins(wanted, covered(), place)
        done.write_text(pins)
    except subprocess.CalledProcessError as error:
        raise PeersMissingError(
            f"it ended with {error.returncode}, what it said is above"
        ) from error
    except (OSError, SystemExit, subprocess.SubprocessError) as error:
        raise PeersMissingError(str(error)) from error
    return python
