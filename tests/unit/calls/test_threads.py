from __future__ import annotations

import os
import threading
from contextvars import ContextVar

from duly.calls import threads as room
from duly.calls.threads import Task, Threads

user: ContextVar[str] = ContextVar("user", default="nobody")


def run(threads, function):
    ended = []
    task = Task(function, lambda: ended.append(threading.current_thread()))
    threads.start(task)
    assert task.wait(10)
    assert len(ended) == 1
    return task


def test_a_thread_is_used_again():
    threads = Threads("peer")
    idents = {run(threads, threading.get_ident).value for _ in range(20)}
    assert len(idents) == 1


def test_the_callers_context_goes_along_and_stays_out_of_the_next_task():
    threads, token = Threads("peer"), user.set("ann")
    assert run(threads, user.get).value == "ann"
    user.reset(token)
    assert run(threads, lambda: user.get()).value == "nobody"
    run(threads, lambda: user.set("left behind"))
    assert run(threads, user.get).value == "nobody"


def test_what_it_raises_is_kept():
    def leave():
        raise SystemExit(3)

    assert isinstance(run(Threads("peer"), leave).error, SystemExit)


def test_an_abandoned_task_is_counted_until_it_ends():
    threads, gate, ended = Threads("peer"), threading.Event(), threading.Event()
    task = Task(lambda: gate.wait(30), ended.set)
    threads.start(task)
    assert not task.wait(0.01)
    threads.abandon(task)
    assert threads.overrunning == 1
    gate.set()
    assert ended.wait(10)
    assert threads.overrunning == 0
    threads.abandon(task)  # it has ended: late is not too late
    assert threads.overrunning == 0


def test_an_idle_thread_ends(monkeypatch):
    monkeypatch.setattr(room, "IDLE_SECONDS", 0.02)
    threads = Threads("short-lived")
    thread = run(threads, threading.current_thread).value
    thread.join(10)
    assert not thread.is_alive()
    assert run(threads, threading.current_thread).value is not thread


def test_threads_end_with_their_owner(monkeypatch):
    monkeypatch.setattr(room, "IDLE_SECONDS", 0.02)
    threads = Threads("short-lived")
    thread = run(threads, threading.current_thread).value
    del threads
    thread.join(10)
    assert not thread.is_alive()


def test_a_forked_child_starts_threads_of_its_own():
    threads = Threads("peer")
    run(threads, lambda: None)
    child = os.fork()
    if child == 0:
        task = Task(lambda: 7, lambda: None)
        threads.start(task)
        os._exit(0 if task.wait(10) and task.value == 7 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
