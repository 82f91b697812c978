"""Publishing: batches handed to an idempotent producer, settled by its delivery reports alone.

One thread owns the producers. A call is *open* from the hand-over to its last report or its
deadline. There is one producer per class of deadline, because Kafka's client knows one delivery
timeout for all that a producer sends: the largest class that is not above the deadline. So even a
process that was frozen sends nothing late when it goes on. Invariant: CONFIRMED is said only after
the report of that very message, written by all in-sync replicas; at the deadline the producer is
purged and replaced, what had been handed to it is UNKNOWN and what had not is UNAVAILABLE.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from duly.brokers.kafka.failures import LastError, cause, mapped, outcome_of
from duly.brokers.kafka.records import headers_of
from duly.brokers.kafka.settings import Settings
from duly.brokers.kafka.topology import topic_name
from duly.kernel import failpoints
from duly.message import Message
from duly.ports import CONFIRMED, Outcome, OutcomeKind

__all__ = ["PAYLOAD_BYTES_MAX", "Call", "Publisher"]

# Kafka's own default for a batch is 1,048,588 bytes; headers and key must fit beside the payload.
PAYLOAD_BYTES_MAX = 1_000_000
RECORD_BYTES_MAX = 1_048_000
DEADLINE_CLASSES = (0.3, 1.0, 3.0, 10.0, 30.0)
IDLE_SECONDS = 1.0
EXIT_SECONDS = 5.0
POLL_SECONDS = 0.005
PROBE_SECONDS = 0.25
SERVE_EVERY = 256  # messages handed over between two looks at reports

_log = logging.getLogger("duly.brokers.kafka")


class Call:
    """One publish. resolve: called once, in the publisher's thread, with the outcomes."""

    def __init__(
        self,
        messages: Sequence[Message],
        deadline: float,
        resolve: Callable[[list[Outcome]], None],
    ) -> None:
        self.messages = messages
        self.deadline = deadline
        self._resolve = resolve
        self._outcomes: list[Outcome | None] = [None] * len(messages)
        self._left = len(messages)
        self.handed = 0  # the first so many were given to a producer
        self.over = False

    def settle(self, index: int, outcome: Outcome) -> None:
        """What became of one message."""
        if not self.over and self._outcomes[index] is None:
            self._outcomes[index] = outcome
            self._left -= 1
            if not self._left:
                self.finish("")

    def report(self, index: int, error: KafkaError | None, _record: Any) -> None:
        """A delivery report, as the client gives it."""
        failpoints.hit(failpoints.RELAY_SENT)
        if error is None:
            self.settle(index, CONFIRMED)
        elif error.code() not in _PURGED:  # whoever drops a producer says why
            self.settle(index, outcome_of(error, self.messages[index].topic))

    def finish(self, why: str) -> None:
        """Answer: what has no report is UNKNOWN if it was handed over, else UNAVAILABLE."""
        if self.over:
            return
        self.over = True
        unknown = Outcome(OutcomeKind.UNKNOWN, why)
        unsent = Outcome(OutcomeKind.UNAVAILABLE, why)
        self._resolve(
            [
                outcome or (unknown if index < self.handed else unsent)
                for index, outcome in enumerate(self._outcomes)
            ]
        )


class _Line:
    """One producer and the calls that it has open. timeout: its delivery timeout, in seconds."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._settings, self._timeout = settings, timeout
        self.prefix = settings.prefix
        self.open: list[Call] = []
        self.waiting: list[Call] = []  # the cluster has not answered yet
        self.errors = LastError(settings)
        self.up = False
        self._producer: Producer | None = None

    @property
    def producer(self) -> Producer:
        """The producer, made when it is first needed."""
        if self._producer is None:
            self.errors = LastError(self._settings)
            self._producer = Producer(
                _configuration(self._settings, self._timeout, self.errors), logger=_SILENT
            )
        return self._producer

    def probe(self) -> bool:
        """Whether the cluster answers; asked at most for a moment."""
        self.errors.down = False
        try:
            self.producer.list_topics(topic=None, timeout=PROBE_SECONDS)
        except KafkaException:
            self.producer.poll(0)  # brings the reason
            self.up = False
        else:
            self.errors.clear()
            self.up = True
        return self.up

    def replace(self, why: str) -> None:
        """Drop the producer with all that it has not sent, and answer every call it had."""
        producer, self._producer, self.up = self._producer, None, False
        if producer is not None:
            producer.purge(in_queue=True, in_flight=True, blocking=False)
            # Its end waits for threads of its own; nobody else needs to.
            threading.Thread(target=_bury, args=[producer], name="duly-kafka-end").start()
        del producer
        calls, self.open = self.open, []
        for call in calls:
            call.finish(why)


class Publisher:
    """A thread that publishes. ``submit`` and ``give_up`` are for any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lines: dict[float, _Line] = {}
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duly-kafka-publish", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        # A thread that is still within the client when the interpreter ends aborts the process.
        atexit.register(self.stop, EXIT_SECONDS)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be answered."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def submit(self, call: Call) -> None:
        """Publish, and answer by the call's deadline."""
        self._orders.put(partial(self._begin, call))

    def give_up(self, call: Call, why: str) -> None:
        """Nobody waits for this call any more; what is not handed over is not sent."""
        self._orders.put(partial(call.finish, why))

    def stop(self, timeout_seconds: float) -> None:
        """Answer what is open and end the thread. Idempotent."""
        self._stopping.set()
        self._orders.put(lambda: None)
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)
        if not self._thread.is_alive():
            atexit.unregister(self.stop)

    # --- in the thread ------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - no call may end the thread; its state may be
                # anything, so everything is dropped
                reason = cause(error)
                if reason is None:
                    _log.exception("publishing failed; the producers are made anew")
                    self._drop(f"publishing failed: {type(error).__name__}")
                else:
                    detail = mapped(reason, self._settings).detail
                    _log.warning("publishing failed; the producers are made anew: %s", detail)
                    self._drop(f"publishing failed: {detail}")
        self._drop("the broker was closed")
        while True:
            try:
                self._orders.get_nowait()()
            except queue.Empty:
                break
        self._drop("the broker was closed")

    def _drop(self, why: str) -> None:
        for line in self._lines.values():
            waiting, line.waiting = line.waiting, []
            for call in waiting:
                call.finish(why)
            line.replace(why)

    def _turn(self) -> None:
        busy = any(line.open or line.waiting for line in self._lines.values())
        with suppress(queue.Empty):
            self._orders.get(timeout=0.0 if busy else IDLE_SECONDS)()
        for line in self._lines.values():
            self._serve(line)

    def _begin(self, call: Call) -> None:
        left = call.deadline - time.monotonic()
        fitting = [c for c in DEADLINE_CLASSES if c <= left + 0.02] or DEADLINE_CLASSES[:1]
        line = self._lines.get(fitting[-1])
        if line is None:
            line = self._lines[fitting[-1]] = _Line(self._settings, fitting[-1])
        if line.up and not line.errors.down:
            line.open.append(call)
            self._hand_over(line, call)
        else:
            line.waiting.append(call)

    def _serve(self, line: _Line) -> None:
        """Reports, deadlines, and calls that wait for the cluster."""
        if line.waiting and line.probe():
            waiting, line.waiting = line.waiting, []
            line.open += waiting
            for call in waiting:
                self._hand_over(line, call)
        try:
            if line.open or line.up:  # idle, it still speaks of its connections
                line.producer.poll(POLL_SECONDS if line.open else 0)
        except KafkaException as error:
            reason = cause(error)
            assert reason is not None
            line.replace(f"the producer cannot go on: {mapped(reason, self._settings).detail}")
        now = time.monotonic()
        for call in [c for c in line.waiting if c.over or c.deadline <= now or line.errors.final]:
            line.waiting.remove(call)
            call.finish(line.errors.as_error().detail)
        line.open = [call for call in line.open if not call.over]
        if any(call.deadline <= now for call in line.open):
            line.replace("no answer before the deadline")

    def _hand_over(self, line: _Line, call: Call) -> None:
        producer, report = line.producer, call.report
        for index, message in enumerate(call.messages):
            if index % SERVE_EVERY == 0:
                producer.poll(0)
                if call.over or time.monotonic() >= call.deadline:
                    return
            call.handed = index + 1
            outcome = _produce(line, message, partial(report, index), deadline=call.deadline)
            if outcome is not None:
                call.settle(index, outcome)


def _produce(
    line: _Line, message: Message, report: Callable[..., None], *, deadline: float
) -> Outcome | None:
    """Hand one message over; the outcome where it cannot be."""
    if len(message.payload) > PAYLOAD_BYTES_MAX:
        return Outcome(
            OutcomeKind.IMPOSSIBLE, f"{len(message.payload)} bytes, Kafka takes {PAYLOAD_BYTES_MAX}"
        )
    try:
        headers = headers_of(message)
        key = None if message.key is None else message.key.encode()
    except UnicodeEncodeError as error:
        return Outcome(OutcomeKind.IMPOSSIBLE, f"not encodable: {error}"[:200])
    topic = topic_name(message.kind, message.topic, line.prefix)
    value = message.payload or None  # compaction removes a key for no value, not for an empty one
    while True:
        try:
            line.producer.produce(topic, value, key, headers=headers, on_delivery=report)
        except BufferError:  # its queue is full; reports make room
            if time.monotonic() >= deadline:
                return Outcome(OutcomeKind.UNAVAILABLE, "too much is under way")
            line.producer.poll(0.01)
        except KafkaException as error:
            known = cause(error)
            assert known is not None
            return outcome_of(known, message.topic)
        else:
            return None


def _configuration(settings: Settings, timeout: float, errors: LastError) -> dict[str, Any]:
    milliseconds = int(timeout * 1000)
    return settings.client() | {
        "acks": "all",
        "enable.idempotence": True,
        "message.timeout.ms": milliseconds,
        "request.timeout.ms": milliseconds,
        "message.max.bytes": RECORD_BYTES_MAX,
        "linger.ms": 1,
        "queue.buffering.max.kbytes": 262_144,
        "queue.buffering.max.messages": 100_000,
        "topic.metadata.propagation.max.ms": 1_000,
        "partitioner": "murmur2_random",  # where Java's clients put a key
        "error_cb": errors.report,
    }


_PURGED = {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}


def _bury(producer: Producer) -> None:
    with suppress(KafkaException):
        producer.poll(0)


_SILENT = logging.getLogger("duly.brokers.kafka.client")
_SILENT.propagate = False
_SILENT.addHandler(logging.NullHandler())
