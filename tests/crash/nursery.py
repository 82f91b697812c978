"""A server that imports everything once and then forks a process per request; both of its sides.

A cold start costs half a second, a fork a few milliseconds, and a thousand kills need a thousand
starts.  The server side has one thread and no connection when it forks.  Invariant: every child is
known by pid, dies with the server (and the server with its caller), and its death is told with its
wait status and the time; nothing is ever ended by name.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.stage import now

ROOT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
START_SECONDS = 60.0
ROLES = {
    "prepare": "tests.crash.prepare",
    "poisoner": "tests.crash.poisoner",
    "meddler": "tests.crash.meddler",
    "worker": "tests.crash.worker",
    "producer": "tests.crash.producer",
    "defer_prepare": "tests.crash.defer_prepare",
    "defer_caller": "tests.crash.defer_caller",
    "defer_worker": "tests.crash.defer_worker",
    "gtx": "tests.crash.gtx_worker",
    "batch": "tests.crash.batch_worker",
    "cdc_prepare": "tests.crash.cdc_prepare",
    "cdc_meddler": "tests.crash.cdc_meddler",
    "cdc_worker": "tests.crash.cdc_worker",
    "cdc_producer": "tests.crash.cdc_producer",
    "cdc_sink_prepare": "tests.crash.cdc_prepare",
    "cdc_sink_meddler": "tests.crash.cdc_sinks_meddler",
    "cdc_sink_worker": "tests.crash.cdc_worker",
    "cdc_sink_producer": "tests.crash.cdc_producer",
}


# --- the caller's side --------------------------------------------------------------------------
class Death(NamedTuple):
    """How a child ended. status: as of ``waitpid``. at: seconds of the journals' clock."""

    pid: int
    status: int
    at: float

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL


class Nursery:
    """The running server. source: the folder that ``duly`` is imported from. logs: where children
    write."""

    def __init__(self, source: Path, logs: Path) -> None:
        environ = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith("DULY_") or k.startswith("DULY_TEST_")
        }
        environ |= {
            "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery", str(logs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            cwd=ROOT,
        )
        self.living: set[int] = set()
        self._deaths: list[Death] = []
        self._rest = b""
        self._await("ready")

    def fork(self, role: str, config: Mapping[str, Any]) -> int:
        """Start a child; returns its pid."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"role": role, "config": config}).encode() + b"\n")
        self._server.stdin.flush()
        pid = int(self._await("born")["pid"])
        self.living.add(pid)
        return pid

    def deaths(self, timeout_seconds: float) -> list[Death]:
        """The children that have died since, waiting for one."""
        if not self._deaths:
            self._read(timeout_seconds)
        found, self._deaths = self._deaths, []
        return found

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal to a living child; False when it is gone already."""
        if pid not in self.living:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def wait(self, pid: int, timeout_seconds: float) -> Death | None:
        """Wait for one child's death; others' are kept for ``deaths``."""
        end = now() + timeout_seconds
        while True:
            for death in self._deaths:
                if death.pid == pid:
                    self._deaths.remove(death)
                    return death
            left = end - now()
            if left <= 0:
                return None
            self._read(left)

    def close(self) -> None:
        """End the server and with it every child."""
        assert self._server.stdin is not None
        with suppress(BrokenPipeError):
            self._server.stdin.close()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()  # PR_SET_PDEATHSIG takes the children along
            self._server.wait(10)
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _await(self, what: str) -> dict[str, Any]:
        end = now() + START_SECONDS
        while now() < end:
            for fact in self._read(max(0.0, end - now())):
                if fact["what"] == what:
                    return fact
        raise TimeoutError(f"the nursery did not say {what!r} in {START_SECONDS:.0f} s")

    def _read(self, timeout_seconds: float) -> list[dict[str, Any]]:
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], timeout_seconds)[0]:
            return []
        data = os.read(self._server.stdout.fileno(), 65_536)
        if not data:
            raise RuntimeError("the nursery has ended; its children's logs say why")
        *lines, self._rest = (self._rest + data).split(b"\n")
        facts = [json.loads(line) for line in lines]
        for fact in facts:
            if fact["what"] == "died":
                self.living.discard(fact["pid"])
                self._deaths.append(Death(fact["pid"], fact["status"], fact["at"]))
        return facts


# --- the server's side --------------------------------------------------------------------------
def serve(logs: Path) -> None:
    """Fork on request until the caller is gone."""
    preload()
    logs.mkdir(parents=True, exist_ok=True)
    wake, ring = os.pipe()
    for end in (wake, ring):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
    living: set[int] = set()
    say({"what": "ready"})
    rest = b""
    while True:
        readable = select.select([0, wake], [], [], 1.0)[0]
        if wake in readable:
            with suppress(BlockingIOError):
                os.read(wake, 4096)
        if 0 in readable:
            data = os.read(0, 65_536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                pid = fork(json.loads(line), logs)
                living.add(pid)
                say({"what": "born", "pid": pid})
        bury(living)
    for pid in living:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def preload() -> None:
    """Import what the children need, so that a fork has it."""
    for name in (*ROLES.values(), "sqlalchemy.orm", "sqlite3", "psycopg", "psycopg.types", "pika",
                 "pymysql",
                 "duly.brokers.embedded.broker", "duly.brokers.rabbitmq.broker",
                 "duly.brokers.kafka.broker", "confluent_kafka", "duly.brokers.activemq.broker",
                 "duly.brokers.nats.broker", "nats", "duly.brokers.redis.broker", "redis",
                 "duly.databases.sqlite.database", "duly.databases.postgres.database",
                 "duly.databases.mysql.database"):  # fmt: skip
        importlib.import_module(name)


def fork(request: dict[str, Any], logs: Path) -> int:
    """One child; only the parent returns."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        log = os.open(
            logs / f"{request['role']}-{os.getpid()}.log",
            os.O_CREAT | os.O_WRONLY | os.O_APPEND,
            0o644,
        )
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        code = importlib.import_module(ROLES[request["role"]]).main(request["config"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def bury(living: set[int]) -> None:
    """Tell of every child that has ended."""
    while living:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        living.discard(pid)
        say({"what": "died", "pid": pid, "status": status, "at": now()})


def say(fact: dict[str, Any]) -> None:
    """One line to the caller."""
    os.write(1, json.dumps(fact).encode() + b"\n")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
