from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from duly.brokers.embedded.engine import Engine, Feed
from duly.brokers.embedded.file import FileStore
from duly.brokers.embedded.log import Log
from duly.brokers.embedded.reader import Reader
from duly.errors import ConfigurationError
from duly.ports import Delivery, TopicSpec
from duly.testing.broker_target import message

TOPIC = TopicSpec("orders", "event")


def engine_of(path: Path, *, lease_seconds: float) -> Engine:
    return Engine(
        lambda: Log(FileStore(str(path))),
        name=str(path),
        lease_seconds=lease_seconds,
        retention_seconds=3600.0,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = engine_of(path, lease_seconds=1.0)
    engine.start()
    yield engine
    engine.close(5.0)


def database(log: Log) -> sqlite3.Connection:
    assert isinstance(log.store, FileStore)
    return log.store.db


def wait(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)  # a pause between two looks


def feed(engine: Engine, name: str = "a") -> tuple[Feed, list[Delivery]]:
    got: list[Delivery] = []

    def deliver(batch: list[Delivery]) -> bool:
        got.extend(batch)
        made.reader.ack([d.token for d in batch])
        return True

    made = Feed(Reader(name, [(1, "g", "orders")], prefetch=100, ttl=1.0), deliver)

    def join(log: Log) -> None:
        log.declare([], [(TOPIC, "g", True)])
        engine.add(made)

    engine.submit(join).result(5.0)
    return made, got


def publish(log: Log, count: int = 1) -> None:
    batch = [message(TOPIC, n, key=f"k{n}") for n in range(count)]
    log.publish(batch, wait_seconds=1.0, may_commit=lambda: True)


def test_everything_runs_in_one_thread_of_its_own(engine: Engine) -> None:
    names = {engine.submit(lambda _: threading.current_thread()).result(5.0) for _ in range(5)}
    assert len(names) == 1
    assert threading.current_thread() not in names


def test_a_failing_job_fails_its_asker_only(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        engine.submit(lambda _: 1 / 0).result(5.0)
    engine.post(lambda: 1 / 0)
    assert engine.submit(lambda _: 7).result(5.0) == 7


def test_commits_of_others_arrive_without_asking(engine: Engine, path: Path) -> None:
    _, got = feed(engine)
    other = Log(FileStore(str(path)))
    publish(other, 5)
    wait(lambda: len(got) == 5)
    time.sleep(0.3)  # idle: the poll has slowed down
    began = time.monotonic()
    publish(other, 5)
    wait(lambda: len(got) == 10)
    assert time.monotonic() - began < 0.25
    wait(lambda: other.topics()[0].groups[0].lag == 0)
    other.close()


def test_own_commits_arrive_too(engine: Engine) -> None:
    _, got = feed(engine)

    def own(log: Log) -> None:
        publish(log, 3)
        engine.news()

    engine.submit(own).result(5.0)
    wait(lambda: len(got) == 3)
    assert sorted(int(d.message.payload) for d in got) == [0, 1, 2]


def test_leases_are_renewed_without_anybody_asking(engine: Engine, path: Path) -> None:
    feed(engine)
    other = Log(FileStore(str(path)))
    query = "SELECT count(*) FROM claim WHERE holder IS NULL OR token != 1"
    time.sleep(2.5)  # more than two leases
    assert database(other).execute(query).fetchone() == (0,)
    other.close()


def test_a_chunk_that_cannot_be_decoded_stops_nothing_else(
    engine: Engine, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    feed(engine)
    db = sqlite3.connect(path)
    row = "INSERT INTO chunk (source, last, count, created_at, data) VALUES (8, 1, 1, 0, x'c1')"
    db.execute(row)
    db.execute("UPDATE source SET next = 2 WHERE id = 8")
    db.commit()
    db.close()
    wait(lambda: "opening it again" in caplog.text)
    assert engine.submit(lambda _: 7).result(5.0) == 7
    assert engine.alive


def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    engine = engine_of(folder / "a.db", lease_seconds=1.0)
    engine.start()
    with pytest.raises(ConfigurationError, match="CANTOPEN"):
        engine.submit(lambda log: log.epoch()).result(5.0)
    folder.mkdir()
    wait(lambda: engine._log is not None)
    assert engine.submit(lambda log: log.epoch()).result(5.0) == 1
    engine.close(5.0)


def test_who_cannot_be_reached_leaves_the_group(engine: Engine, path: Path) -> None:
    made, _ = feed(engine)
    made.deliver = lambda _batch: False
    other = Log(FileStore(str(path)))
    publish(other)
    count = "SELECT count(*) FROM member"
    wait(lambda: database(other).execute(count).fetchone() == (0,))
    wait(lambda: made not in engine._feeds)  # it is forgotten just after the commit
    assert engine.alive
    other.close()


def test_closing_gives_everything_back_and_runs_what_is_queued(path: Path) -> None:
    engine = engine_of(path, lease_seconds=60.0)
    engine.start()
    feed(engine)
    futures: list[Future[int]] = [engine.submit(lambda log: log.epoch()) for _ in range(50)]
    engine.close(5.0)
    engine.close(5.0)
    assert all(f.done() for f in futures)
    assert not engine.alive
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM claim WHERE holder IS NOT NULL").fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM member").fetchone() == (0,)
    db.close()
