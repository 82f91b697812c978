"""Receiving: one thread per consumer group polls, hands over, and commits.

The thread never stops polling, so a slow handler costs no membership however long it takes; when
the application has ``prefetch`` records, the partitions are paused instead. Partitions move one by
one (cooperative): one that is taken away is not handed out any more, what is under way gets a
moment to end, then its watermark is committed; of one that was *lost* nothing is committed, because
somebody else has it already. Invariant: an offset is committed only below the lowest record that is
not done, by the member that has the partition; and none says that a partition was left in good
order while its records are with the application (``progress``).
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from duly.brokers.kafka.failures import LastError
from duly.brokers.kafka.progress import LEFT, Progress
from duly.brokers.kafka.settings import Settings
from duly.brokers.kafka.topology import Starts

__all__ = ["Raw", "Reader", "Token"]

POLL_SECONDS = 0.1
PAUSE_AFTER_SECONDS = 1.0  # what is fetched already is fetched again after a pause
REVOKE_SECONDS = 2.0  # what is under way in a partition that moves may end
REWIND_SECONDS = 1.0  # what was given back comes again after it
CALL_SECONDS = 5.0
RECREATE_SECONDS = 1.0
EXIT_SECONDS = 10.0
COMMIT_SECONDS = 2.0
LEAVE_SECONDS = 2.0
AGAIN_SECONDS = 0.1
BATCH_MAX = 1000

_log = logging.getLogger("duly.brokers.kafka")
_SILENT = logging.getLogger("duly.brokers.kafka.client")


class Token(NamedTuple):
    """What ack needs. progress: of the partition, as it was assigned when this was received."""

    progress: Progress
    offset: int


class Raw(NamedTuple):
    """A record as it came: it is decoded by who reads it. again: it may have come before."""

    token: Token
    record: Any
    again: bool


class Reader:
    """A thread that reads topics for one consumer group. notify: called in it when records came."""

    def __init__(
        self,
        settings: Settings,
        group: str,
        *,
        topics: Sequence[str],
        prefetch: int,
        starts: Starts,
        notify: Callable[[], None],
    ) -> None:
        self.group = group
        self.topics = topics
        self.arrived: deque[Raw] = deque()
        self.lock = threading.RLock()
        self._settings = settings
        self._prefetch = prefetch
        self._starts = starts
        self._notify = notify
        self._news = threading.Condition(self.lock)
        self._progress: dict[tuple[str, int], Progress] = {}
        self._closing = False
        self._paused = False
        self._rewind_at = 0.0
        self._errors = LastError(settings)
        self._thread = threading.Thread(target=self._run, name="duly-kafka-read", daemon=True)

    def start(self) -> None:
        """Join the group, in the background."""
        # A thread that is still within the client when the interpreter ends aborts the process.
        atexit.register(self.close, EXIT_SECONDS)
        self._thread.start()

    def take(self, most: int) -> list[Raw]:
        """Records for the application, at most so many."""
        with self.lock:
            return [self.arrived.popleft() for _ in range(min(most, len(self.arrived)))]

    def ack(self, tokens: Iterable[Token]) -> None:
        """These are done; the watermark is committed soon."""
        with self.lock:
            for progress, offset in tokens:
                progress.settle(offset)
            self._news.notify_all()

    def release(self, tokens: Iterable[Token]) -> None:
        """Give back; their partitions are read again from there after a moment.

        What came behind them and nobody has seen goes back too: order is kept.
        """
        with self.lock:
            back: dict[Progress, list[int]] = {}
            for progress, offset in tokens:
                back.setdefault(progress, []).append(offset)
            halted = {progress for progress, offsets in back.items() if progress.release(offsets)}
            if not halted:
                return
            kept = [raw for raw in self.arrived if raw.token.progress not in halted]
            for raw in self.arrived:
                if raw.token.progress in halted:
                    raw.token.progress.release([raw.token.offset])
            self.arrived.clear()
            self.arrived.extend(kept)
            self._rewind_at = time.monotonic() + REWIND_SECONDS
            self._news.notify_all()

    def close(self, timeout_seconds: float) -> None:
        """Commit what is done and leave the group; blocks. Idempotent."""
        with self.lock:
            self._closing = True
            for raw in self.arrived:
                raw.token.progress.release([raw.token.offset])
            self.arrived.clear()
            self._news.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        if not self._thread.is_alive():
            atexit.unregister(self.close)

    # --- in the thread ------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._closing:
            try:
                self._consume()
            except Exception:  # noqa: BLE001 - no record may end the thread; a new member is clean
                _log.exception("group %s: receiving failed; joining again", self.group)
                self._drop(self._progress)
                with self.lock:
                    self._news.wait_for(lambda: self._closing, RECREATE_SECONDS)

    def _consume(self) -> None:
        self._errors = LastError(self._settings)
        given = _configuration(self._settings, self.group, self._errors)
        consumer = Consumer(given | {"on_commit": self._answered}, logger=_SILENT)
        self._paused = False
        try:
            consumer.subscribe(
                list(self.topics),
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._lost,
            )
            while not self._closing and not self._errors.fatal:
                self._turn(consumer)
            self._commit_at_last(consumer, self._progress)
        finally:
            _leave(consumer)
            self._drop(self._progress)

    def _turn(self, consumer: Consumer) -> None:
        room = self._make_room(consumer)
        records = consumer.consume(1, POLL_SECONDS)
        if records and room > 1:
            records += consumer.consume(min(room - 1, BATCH_MAX), 0)
        self._arrive(consumer, records)
        self._rewind(consumer)
        self._commit(consumer, self._progress)

    def _make_room(self, consumer: Consumer) -> int:
        """How many more records may be handed over; pauses and resumes the partitions by it."""
        with self.lock:
            if self._room() <= 0 and not self._paused:  # it may be a moment only
                self._news.wait_for(lambda: self._room() > 0 or self._closing, PAUSE_AFTER_SECONDS)
            room = self._room()
        if (room <= 0) != self._paused:
            assigned = consumer.assignment()
            (consumer.pause if room <= 0 else consumer.resume)(assigned)
            self._paused = room <= 0
        return room

    def _room(self) -> int:
        return self._prefetch - sum(p.under_way for p in self._progress.values())

    def _arrive(self, consumer: Consumer, records: Iterable[Any]) -> None:
        came, first = False, []
        with self.lock:
            for record in records:
                error = record.error()
                if error is not None:
                    self._trouble(consumer, error, record)
                    continue
                progress = self._progress.get((record.topic(), record.partition()))
                offset = record.offset()
                begins = progress is not None and not progress.begun
                if progress is not None and progress.unsaid:
                    first.append(record)
                elif progress is not None and progress.admit(offset):
                    if begins:
                        progress.know_end(_end(consumer, record))
                    again = progress.doubtful(offset)
                    self.arrived.append(Raw(Token(progress, offset), record, again))
                    came = True
        if came:
            self._notify()
        if first:
            self._say(consumer, first)
            self._arrive(consumer, first)

    def _say(self, consumer: Consumer, records: Iterable[Any]) -> None:
        """Take back that partitions were left in good order, before their first records go to the
        application; of one where that fails they count as doubtful.
        """
        begin: dict[tuple[str, int], int] = {}
        for record in records:
            begin.setdefault((record.topic(), record.partition()), record.offset())
        told = [TopicPartition(*place, offset) for place, offset in begin.items()]
        try:
            answers = consumer.commit(offsets=told, asynchronous=False)
            said = {(one.topic, one.partition) for one in answers if one.error is None}
        except KafkaException as error:
            _log.debug("group %s: not committed: %s", self.group, error)
            said = set()
        with self.lock:
            for place in begin:
                if (progress := self._progress.get(place)) is not None:
                    progress.unsaid, progress.trusted = False, place in said

    def _trouble(self, consumer: Consumer, error: KafkaError, record: Any) -> None:
        place = f"{record.topic()}/{record.partition()}"
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            # The log was shortened past what this group has read: what is left is read, and said.
            _log.error(
                "group %s has lost messages of %s: %s; reading on from the oldest kept",
                self.group,
                place,
                error.str(),
                extra={"code": "GROUP_HISTORY_LOST"},
            )
            with self.lock:
                self._progress[record.topic(), record.partition()] = Progress(
                    record.topic(), record.partition()
                )
            # The client has stopped reading it and takes no seek: it is assigned anew.
            consumer.incremental_unassign([TopicPartition(record.topic(), record.partition())])
            consumer.incremental_assign(
                [TopicPartition(record.topic(), record.partition(), OFFSET_BEGINNING)]
            )
        elif error.code() != KafkaError._PARTITION_EOF:
            _log.warning(
                "group %s: %s",
                self.group,
                self._settings.censor(error.str()),
                extra={"place": place},
            )

    def _rewind(self, consumer: Consumer) -> None:
        with self.lock:
            if not self._rewind_at or time.monotonic() < self._rewind_at:
                return
            self._rewind_at = 0.0
            back = [(p, p.rewind()) for p in self._progress.values() if p.halted]
        for progress, offset in back:
            try:
                consumer.seek(TopicPartition(*progress.place, offset))
            except KafkaException as error:  # it is on its way to another member, or to be fetched
                _log.debug("cannot go back in %s: %s", progress.place, error)
                with self.lock:
                    progress.halted = True
                    self._rewind_at = time.monotonic() + REWIND_SECONDS

    def _commit(self, consumer: Consumer, progress: Mapping[tuple[str, int], Progress]) -> None:
        """Hand over what is new; what is not taken comes back by ``_answered``."""
        offsets = self._due(progress)
        if offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=True)
            except KafkaException as error:
                self._answered(error, offsets)

    def _commit_at_last(
        self, consumer: Consumer, progress: Mapping[tuple[str, int], Progress]
    ) -> None:
        """Commit and wait for it, again for a moment while no broker answers; then it is left."""
        end = time.monotonic() + COMMIT_SECONDS
        with self.lock:
            last = [(p.place, said) for p in progress.values() if (said := p.last) is not None]
        offsets = [TopicPartition(*place, *said) for place, said in last]
        while offsets:
            try:
                consumer.commit(offsets=offsets, asynchronous=False)
            except KafkaException as error:
                _log.debug("group %s: not committed: %s", self.group, error)
                if error.args[0].retriable() and time.monotonic() < end:
                    time.sleep(AGAIN_SECONDS)
                    continue
            return

    def _due(self, progress: Mapping[tuple[str, int], Progress]) -> list[TopicPartition]:
        with self.lock:
            due = [(p, p.to_commit) for p in progress.values()]
            told = [(p, offset) for p, offset in due if offset is not None]
            for p, offset in told:
                p.told(offset)
        return [TopicPartition(*p.place, offset) for p, offset in told]

    def _answered(self, error: object, offsets: Iterable[TopicPartition]) -> None:
        """What was not committed is told again with the next commit."""
        refused = [one for one in offsets if error is not None or one.error is not None]
        if not refused:
            return
        _log.debug("group %s: not committed: %s", self.group, error)
        with self.lock:
            for one in refused:
                progress = self._of(one)
                if progress is not None:
                    progress.told(0)

    # --- the group moves ----------------------------------------------------------------------
    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        positions = self._positions(consumer, partitions)
        with self.lock:
            for one in positions:
                trusted = one.metadata == LEFT
                begun = Progress(one.topic, one.partition, trusted=trusted)
                self._progress[one.topic, one.partition] = begun
        consumer.incremental_assign(positions)
        if self._paused:
            consumer.pause(partitions)

    def _positions(
        self, consumer: Consumer, partitions: list[TopicPartition]
    ) -> list[TopicPartition]:
        """Where to read on: as committed, or the beginning of a partition nobody knew of."""
        try:
            known: list[TopicPartition] = consumer.committed(partitions, timeout=CALL_SECONDS)
        except KafkaException as error:
            _log.warning("group %s: offsets are not known yet: %s", self.group, error)
            return partitions  # the client asks again by itself
        for one in known:
            if one.offset < 0:
                place = (self.group, one.topic, one.partition)
                one.offset = self._starts.get(place, OFFSET_BEGINNING)
        return known

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        with self.lock:
            moving = {p.place: p for one in partitions if (p := self._of(one)) is not None}
            kept = []
            for raw in self.arrived:
                if raw.token.progress.place in moving:
                    raw.token.progress.release([raw.token.offset])
                else:
                    kept.append(raw)
            self.arrived.clear()
            self.arrived.extend(kept)
            for progress in moving.values():
                progress.halted = True
            self._news.wait_for(
                lambda: self._closing or not any(p.under_way for p in moving.values()),
                REVOKE_SECONDS,
            )
        self._commit_at_last(consumer, moving)
        self._drop(moving)
        consumer.incremental_unassign(partitions)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Somebody else has them: nothing of ours counts there any more."""
        self._drop({p.place: p for one in partitions if (p := self._of(one)) is not None})
        consumer.incremental_unassign(partitions)

    def _of(self, one: TopicPartition) -> Progress | None:
        return self._progress.get((one.topic, one.partition))

    def _drop(self, gone: Mapping[tuple[str, int], Progress]) -> None:
        """Late acks of these partitions count no more, and what nobody has seen is forgotten."""
        with self.lock:
            for place, progress in list(gone.items()):
                progress.live = False
                self._progress.pop(place, None)
            kept = [raw for raw in self.arrived if raw.token.progress.live]
            self.arrived.clear()
            self.arrived.extend(kept)


def _end(consumer: Consumer, record: Any) -> int:
    """The end of a partition when this record was fetched."""
    place = TopicPartition(record.topic(), record.partition())
    _, end = consumer.get_watermark_offsets(place, cached=True)
    return int(end) if end > record.offset() else sys.maxsize  # the client may not know it yet


def _leave(consumer: Consumer) -> None:
    """Give up the partitions, then close.

    A client that closes while its group moves can wait for itself for ever, within the callback
    and with the interpreter's lock held (librdkafka #4041, #4527): so it has nothing by then.
    """
    end = time.monotonic() + LEAVE_SECONDS
    with suppress(KafkaException):
        consumer.unsubscribe()
        consumer.consume(1, 0)
        while consumer.assignment() and time.monotonic() < end:
            consumer.consume(1, AGAIN_SECONDS)  # brings ``_revoked``
    consumer.close()


def _configuration(settings: Settings, group: str, errors: LastError) -> dict[str, Any]:
    return settings.client() | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",  # a group begins where it was declared; a gap is said
        "partition.assignment.strategy": "cooperative-sticky",
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
        "session.timeout.ms": settings.session_seconds * 1000,
        "heartbeat.interval.ms": max(200, settings.session_seconds * 1000 // 12),
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 100,
        "fetch.queue.backoff.ms": 50,
        "queued.min.messages": 10_000,
        "queued.max.messages.kbytes": 32_768,
        "error_cb": errors.report,
    }
