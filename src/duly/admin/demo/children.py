"""The demo's child processes: started, watched and ended by their own process ids.

Invariant: no child outlives the block it was started in - it is asked to end, then killed, each
bounded in time; and should the driver die, the closed pipe on its standard input ends it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

import duly
from duly.admin.demo.setup import Setup

__all__ = ["Child", "DemoError"]

_END_SECONDS = 15.0
_KILLED_SECONDS = 5.0
_LOG_LINES_SHOWN = 5


class DemoError(Exception):
    """The demo could not go on; says what happened and where to look."""


class Child:
    """One process of this package. module: its last name. log: where its standard error goes."""

    def __init__(self, module: str, setup: Setup, *, log: Path) -> None:
        self.name, self._log = module, log
        self.facts: SimpleQueue[dict[str, Any]] = SimpleQueue()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"duly.admin.demo.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=log.parent,
                env=_environment(),
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver, which then ends its children
            )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.daemon = True
        self._reader.start()
        self.tell(setup.line())

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def tell(self, line: str) -> None:
        """Write a line to its standard input. Raises DemoError when it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise self.trouble() from None

    def news(self) -> list[dict[str, Any]]:
        """What it has said since the last call."""
        found = []
        while True:
            try:
                found.append(self.facts.get_nowait())
            except Empty:
                return found

    def kill(self) -> int:
        """SIGKILL; returns the exit status."""
        self._process.send_signal(signal.SIGKILL)
        return self._process.wait(_KILLED_SECONDS)

    def terminate(self) -> None:
        """SIGTERM, without waiting. Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> int:
        """SIGTERM, and SIGKILL when that is not enough; returns the exit status. Idempotent."""
        self.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        assert self._process.stdin is not None
        with suppress(OSError):  # what was left to flush has no reader any more
            self._process.stdin.close()
        self._reader.join(_KILLED_SECONDS)
        return self._process.wait(_KILLED_SECONDS)

    def trouble(self) -> DemoError:
        """Why it is not running, with the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
        end = "\n  ".join(["", *lines]) if lines else ""
        return DemoError(f"the {self.name} ended with status {self.status}; see {self._log}{end}")

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.facts.put(json.loads(line))


def _environment() -> dict[str, str]:
    """Ours, without the settings of other Apps, and with duly importable from another folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DULY_")}
    paths = [str(Path(duly.__file__).resolve().parents[1])]
    paths += [str(Path(p).resolve()) for p in kept.get("PYTHONPATH", "").split(os.pathsep) if p]
    return kept | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}
