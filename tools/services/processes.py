"""Processes that outlive the command that started them.

Owns how a process is started apart, recognised later, waited for and ended.  Invariant: only a
process that this module started is ever signalled: a pid counts only together with the moment it
was born, so a number that the system has given to somebody else is left alone.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = [
    "ServerFailedError",
    "alive",
    "end",
    "free_ports",
    "launch",
    "pid_of",
    "stepped_down",
    "tail",
    "wait_for",
]

POLL_SECONDS = 0.05

_children: dict[int, subprocess.Popen[bytes]] = {}  # those of this process, to be reaped


class ServerFailedError(RuntimeError):
    """A server did not do what it was asked; the text names it and shows the end of its log."""


def _table() -> dict[int, tuple[int, str, str]]:
    """Every process: pid -> (parent, state, birth)."""
    done = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,state=,lstart="],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    rows = (line.split(None, 3) for line in done.stdout.splitlines())
    return {int(pid): (int(parent), state, birth.strip()) for pid, parent, state, birth in rows}


def _proc_table() -> dict[int, tuple[int, str, str]]:
    """The same from /proc, where there is one: exact births, and no need of ps."""
    rows = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:  # it may end while we look
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        rows[int(entry.name)] = (int(fields[1]), fields[0], fields[19])
    return rows


def table() -> dict[int, tuple[int, str, str]]:
    """Every process of the machine: pid -> (parent, state, birth)."""
    for child in list(_children.values()):
        child.poll()  # takes a zombie of ours off the table
    return _proc_table() if Path("/proc/self/stat").exists() else _table()


def launch(
    command: Sequence[str | Path],
    record: Path,
    *,
    env: Mapping[str, str],
    log: Path,
    user: str | None = None,
) -> None:
    """Start ``command`` in a session of its own and write who it is to ``record``."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            cwd=log.parent,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **stepped_down(user),
        )
    _children[child.pid] = child
    birth = table().get(child.pid, (0, "", ""))[2]
    record.write_text(json.dumps({"pid": child.pid, "birth": birth}))


def stepped_down(user: str | None) -> Any:
    """The keywords with which ``subprocess`` runs something as ``user``; none for ourselves."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def pid_of(record: Path) -> int | None:
    """The recorded pid; None when nothing was started, or it was ended."""
    known = _recorded(record)
    return known[0] if known else None


def _recorded(record: Path) -> tuple[int, str] | None:
    if not record.exists():
        return None
    kept = json.loads(record.read_text())
    return int(kept["pid"]), str(kept["birth"])


def _is(pid: int, birth: str, rows: Mapping[int, tuple[int, str, str]]) -> bool:
    row = rows.get(pid)
    return row is not None and not row[1].startswith("Z") and row[2] == birth


def alive(record: Path) -> bool:
    """Whether the recorded process is still there; a zombie is not."""
    known = _recorded(record)
    return known is not None and _is(*known, table())


def _tree(root: int, rows: Mapping[int, tuple[int, str, str]]) -> list[tuple[int, str]]:
    """A process and everything below it, the root first."""
    found = [root]
    for pid in found:
        found += [child for child, row in rows.items() if row[0] == pid]
    return [(pid, rows[pid][2]) for pid in found]


def end(
    record: Path, *, signals: Mapping[int, int] | None = None, within_seconds: float = 0.0
) -> None:
    """Send ``signals`` (pid -> signal), wait, then SIGKILL the process and all its children.

    Returns only when all of them are gone.  Without ``signals`` this is what a power cut does to
    the process.
    """
    known = _recorded(record)
    rows = table()
    if known is None or not _is(*known, rows):
        record.unlink(missing_ok=True)
        return
    tree = _tree(known[0], rows)

    def gone() -> bool:
        now = table()
        return not any(_is(pid, birth, now) for pid, birth in tree)

    for pid, number in (signals or {}).items():
        if pid in dict(tree):
            _send(pid, number)
    if not wait_for(gone, within_seconds):
        now = table()
        for pid, birth in tree:
            if _is(pid, birth, now):
                _send(pid, signal.SIGKILL)
        if not wait_for(gone, 15.0):
            raise ServerFailedError(f"pid {known[0]} does not end")
    record.unlink(missing_ok=True)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended since we looked
        os.kill(pid, number)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` came true within that time; it is asked at least once."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def free_ports(count: int) -> list[int]:
    """That many different TCP ports of 127.0.0.1 that are free now."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in taken]
    for one in taken:
        one.close()
    return ports


def tail(log: Path, lines: int = 8) -> str:
    """The end of a log, for an error."""
    return (
        "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
        if log.exists()
        else "(no log)"
    )
