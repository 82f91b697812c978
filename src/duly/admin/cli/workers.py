"""Several processes of one App under a parent that does nothing else.

Theory of operation.  The parent holds one end of a pipe to each worker, on which the worker's own
thread writes a byte a second.  Bytes say "I live"; the first says "I have started"; the end of the
pipe says that the worker is gone - and, seen from the worker, that the parent is, upon which it
drains and ends, so no orphans stay.

    a worker ends                 -> started again, with back-off
    none has ever started         -> the parent gives up: it is the program, not the moment
    SIGTERM or SIGINT             -> passed on; the workers drain, then the parent ends
    the second one                -> the workers are killed at once
    its bytes stop (SQLite only)  -> it is frozen with the file's one write lock, perhaps: killed

The invariant: the parent never outlives its workers, nor they it by more than their drain.
Workers are in process groups of their own, so a Ctrl-C reaches them once, through the parent.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from duly.admin.cli.output import EXIT_OK, EXIT_PROBLEM, note
from duly.kernel.backoff import Retry

__all__ = ["BEAT_SECONDS", "SILENCE_SECONDS", "Heart", "Workers"]

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 10.0  # well above the pauses of a busy machine
_STEADY_SECONDS = 60.0  # a worker that lived this long begins with a short back-off again
_TURN_SECONDS = 0.2
_AGAIN = Retry(attempts=10_000, base="500ms", max="30s")


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    started: bool = False
    since: float = 0.0
    heard_at: float = 0.0
    crashes: int = 0
    again_at: float = 0.0


class Workers:
    """The parent of ``count`` workers.

    command: the arguments of a worker, given the file descriptor it writes its bytes to.
    kill_silent: whether one whose bytes stop is killed. drain_seconds: how long a stop may take.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        count: int,
        *,
        kill_silent: bool,
        drain_seconds: float,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._command, self._kill_silent = command, kill_silent
        self._drain_seconds, self._silence_seconds = drain_seconds, silence_seconds
        self._workers = [_Worker(number + 1) for number in range(count)]
        self._ever_started = False
        self._stop_signal = 0
        self._signals = 0
        self._exit = EXIT_OK
        self._deadline = 0.0

    def run(self) -> int:
        """Run until stopped by a signal; returns the exit code. Call it in the main thread."""
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not (self._stopping and not self._alive()):
                self._turn()
            return self._exit
        finally:
            for worker in self._alive():
                self._kill(worker)
                self._reap(worker)
            for which, handler in before.items():
                signal.signal(which, handler)

    @property
    def _stopping(self) -> bool:
        return self._signals > 0

    def _on_signal(self, which: int, frame: object) -> None:
        self._signals += 1
        self._stop_signal = self._stop_signal or which

    def _turn(self) -> None:
        now = time.monotonic()
        if self._stopping:
            self._stop(now)
        else:
            for worker in self._workers:
                if worker.process is None and now >= worker.again_at:
                    self._start(worker)
        self._listen()
        for worker in self._alive():
            if worker.process is not None and worker.process.poll() is not None:
                self._ended(worker)
            elif self._kill_silent and worker.started:
                self._judge(worker)

    def _alive(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.process is not None]

    def _start(self, worker: _Worker) -> None:
        reading, writing = os.pipe()
        try:
            command = list(self._command(writing))
            worker.process = subprocess.Popen(command, pass_fds=(writing,), process_group=0)  # noqa: S603
        finally:
            os.close(writing)
        worker.pipe, worker.started = reading, False
        worker.since = worker.heard_at = time.monotonic()

    def _listen(self) -> None:
        """Hear the workers before anybody is judged: this process, too, may have been frozen."""
        by_pipe = {worker.pipe: worker for worker in self._alive() if worker.pipe >= 0}
        ready, _, _ = select.select(list(by_pipe), [], [], _TURN_SECONDS)
        for pipe in ready:
            worker = by_pipe[pipe]
            if os.read(pipe, 65_536):
                worker.started = self._ever_started = True
                worker.heard_at = time.monotonic()
            else:
                os.close(pipe)
                worker.pipe = -1

    def _judge(self, worker: _Worker) -> None:
        silent = time.monotonic() - worker.heard_at
        if silent > self._silence_seconds:
            note(f"worker {worker.number} has been silent for {silent:.0f} s and is killed")
            self._kill(worker)

    def _ended(self, worker: _Worker) -> None:
        process = self._reap(worker)
        now = time.monotonic()
        if self._stopping:
            return
        how = f"signal {-process.returncode}" if process.returncode < 0 else process.returncode
        if not self._ever_started:
            note(f"worker {worker.number} ended before it had started ({how})")
            self._exit = EXIT_PROBLEM
            self._signals, self._stop_signal = 1, signal.SIGTERM
            return
        worker.crashes = 1 if now - worker.since > _STEADY_SECONDS else worker.crashes + 1
        delay = _AGAIN.delay(worker.crashes, random.random())
        worker.again_at = now + delay
        note(f"worker {worker.number} ended ({how}); again in {delay:.1f} s")

    def _reap(self, worker: _Worker) -> subprocess.Popen[bytes]:
        process = worker.process
        assert process is not None, "only a running worker ends"
        process.wait()
        if worker.pipe >= 0:
            os.close(worker.pipe)
        worker.process, worker.pipe = None, -1
        return process

    def _stop(self, now: float) -> None:
        if not self._deadline:
            self._deadline = now + self._drain_seconds
            for worker in self._alive():
                self._tell(worker, signal.SIGTERM)
        elif self._signals > 1 or now > self._deadline:
            self._exit = 128 + self._stop_signal if self._signals > 1 else EXIT_PROBLEM
            for worker in self._alive():
                self._kill(worker)

    def _kill(self, worker: _Worker) -> None:
        self._tell(worker, signal.SIGKILL)

    @staticmethod
    def _tell(worker: _Worker, which: int) -> None:
        if worker.process is not None and worker.process.poll() is None:
            worker.process.send_signal(which)


class Heart:
    """A worker's side of the pipe: a thread that nothing in the worker can hold up but a freeze.

    on_orphaned: called in that thread when the parent is gone.
    """

    def __init__(self, pipe: int, on_orphaned: Callable[[], None]) -> None:
        self._pipe, self._on_orphaned = pipe, on_orphaned
        self._thread = threading.Thread(target=self._beat, name="duly-heart", daemon=True)

    def start(self) -> None:
        """Say that the worker has started, and go on saying that it lives, to its end."""
        self._thread.start()

    def _beat(self) -> None:
        try:
            while os.write(self._pipe, b"."):
                time.sleep(BEAT_SECONDS)
        except OSError:
            self._on_orphaned()
