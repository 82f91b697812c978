from __future__ import annotations

import threading
import time

import pytest

from duly.brokers.rabbitmq.thread import IoThread


def test_it_runs_answers_times_and_stops() -> None:
    io = IoThread(on_panic=lambda: None)
    assert not io.alive
    io.start()
    assert io.ask(threading.current_thread).result(5.0).name == "duly-rabbitmq"
    with pytest.raises(ZeroDivisionError):
        io.ask(lambda: 1 / 0).result(5.0)
    fired: list[str] = []
    cancel = io.ask(lambda: io.later(0.02, lambda: fired.append("cancelled"))).result(5.0)
    io.post(cancel)
    io.post(lambda: io.later(0.03, lambda: fired.append("kept")))
    time.sleep(0.2)  # longer than the timers
    assert fired == ["kept"]
    io.stop(5.0)
    io.stop(5.0)
    assert not io.alive


def test_an_escaped_exception_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    panics: list[int] = []
    io = IoThread(on_panic=lambda: panics.append(1))
    io.start()
    io.post(lambda: 1 / 0)
    assert io.ask(lambda: 7).result(5.0) == 7
    assert panics == [1]
    assert "ZeroDivisionError" in caplog.text
    io.stop(5.0)
