"""The disk under a worker's spool, as bad as a real one: it forgets, and it fills up.

What was written is on the disk only behind a sync of the file, and its name only behind a sync of
the folder; the kernel forgets neither when a process is killed, so this does it in the moment of
death.  Full is what the kernel calls full: fewer bytes than asked, then ENOSPC.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

from duly.batch import spool

FULL = "disk-full"  # the harness makes and removes this file


class Disk:
    """Installed once in a process, before it writes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._full = folder / FULL
        self._chance = random.Random(seed)
        self._synced: dict[int, int] = {}  # inode -> bytes that are on the disk
        self._named: dict[Path, dict[str, int]] = {}  # folder -> its names that are
        self._written: set[Path] = set()
        self.refused = 0

    def install(self) -> None:
        """Come between the spool and the kernel."""
        write, sync, sync_folder = os.pwritev, os.fdatasync, spool.sync_folder

        def pwritev(handle: int, pieces: Sequence[memoryview], offset: int) -> int:
            self._note(Path(f"/proc/self/fd/{handle}").readlink())
            if not self._full.exists():
                return write(handle, pieces, offset)
            self.refused += 1
            fits = pieces[0][: self._chance.randrange(len(pieces[0]) + 1)]
            if fits and self._chance.random() < 0.5:
                return write(handle, [fits], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def fdatasync(handle: int) -> None:
            found = os.fstat(handle)
            sync(handle)
            self._synced[found.st_ino] = found.st_size

        def synced_folder(folder: Path) -> None:
            names = {one.name: one.inode() for one in os.scandir(folder)}
            sync_folder(folder)
            self._named[folder] = names

        os.pwritev, os.fdatasync = pwritev, fdatasync  # type: ignore[assignment]
        spool.sync_folder = synced_folder

    def _note(self, path: Path) -> None:
        self._written.add(path)
        if path.name.endswith(".new"):  # it is about to take another file's place
            self._written.add(path.with_name(path.name[1:].removesuffix(".new")))

    def tear(self) -> int:
        """Forget what is not on the disk, or a part of it; how many files that changed."""
        changed = 0
        for path in sorted(self._written):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            kept = self._synced.get(found.st_ino, 0)
            named = self._named.get(path.parent, {}).get(path.name) == found.st_ino
            if not named and self._chance.random() < 0.8:
                path.unlink()
                changed += 1
                continue
            if found.st_size > kept:
                changed += 1
                left = self._chance.randint(kept, found.st_size)
                with path.open("r+b") as file:
                    file.truncate(left)
                    if self._chance.random() < 0.5:  # the length was kept, the bytes were not
                        file.truncate(found.st_size)
        return changed
