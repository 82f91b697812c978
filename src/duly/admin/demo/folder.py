"""``./duly-demo``: the only place on disk that the demo writes to.

Invariant: a folder that the demo did not make is never touched; one that it made is replaced as a
whole, so that no run sees what another one left, and never under a demo that is still running.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from duly.admin.demo.model import PREFIX
from duly.errors import ConfigurationError

__all__ = ["BROKER_FILE", "DATABASE_FILE", "FOLDER", "own_folder"]

FOLDER = "duly-demo"
DATABASE_FILE = "flights.db"
BROKER_FILE = "broker.db"

_MARK = ".made-by-duly-demo"
_TOML = f"""\
# Settings of the demo: in this folder, duly's commands look at what it left.
database = "sqlite:///{DATABASE_FILE}"
broker = "embedded:///{BROKER_FILE}"
table_prefix = "{PREFIX}"
"""


@contextmanager
def own_folder(parent: Path, *, embedded: bool) -> Iterator[Path]:
    """An empty folder of ours for the time of the block; it stays behind.

    embedded: it will hold database and broker, so it gets settings that name them.
    Raises ConfigurationError when something else has the name, or a demo is running in it.
    """
    folder = parent / FOLDER
    if folder.is_symlink() or (folder.exists() and not (folder / _MARK).is_file()):
        raise ConfigurationError(
            f"./{FOLDER} is there and was not made by the demo; move it or start somewhere else",
            code="DEMO_FOLDER",
        )
    try:
        folder.mkdir(exist_ok=True)
        with (folder / _MARK).open("w") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back when the process ends
            _empty(folder)
            mark.write("Replaced whenever `duly demo` runs here.\n")
            mark.flush()
            if embedded:
                (folder / "duly.toml").write_text(_TOML)
            yield folder
    except BlockingIOError:
        raise ConfigurationError(f"a demo is running in ./{FOLDER}", code="DEMO_FOLDER") from None
    except PermissionError as error:
        raise ConfigurationError(f"./{FOLDER} cannot be written: {error.strerror}") from error


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == _MARK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
