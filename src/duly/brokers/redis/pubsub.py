"""Redis Pub/Sub: at most once, by nature, and therefore refused where a loss matters.

A message goes to whoever listens at that moment and is kept nowhere: a receiver that restarts, or
reads too slowly, loses what came meanwhile. Invariant: nobody gets this behind an outbox, or for
commands, without a written reason (``allow_unsafe``). Every process of a group hears every message;
that a group handles it once is the inbox's doing.

A channel is named as the stream would be; what is sent is a CloudEvent in structured mode.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import redis
from redis import exceptions

from duly.brokers.redis import inspection
from duly.brokers.redis.entries import command
from duly.brokers.redis.link import CALL_SECONDS, Link, client_arguments, raised
from duly.brokers.redis.publisher import PAYLOAD_BYTES_MAX
from duly.brokers.redis.settings import Settings, parse
from duly.brokers.redis.topology import stream_name
from duly.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    DulyError,
    OperatorError,
    OutcomeUnknownError,
    UnsafeSettingError,
)
from duly.message import Message
from duly.ports import (
    CONFIRMED,
    BrokerFeatures,
    Delivery,
    Finding,
    GroupStatus,
    Outcome,
    OutcomeKind,
    Peeked,
    Severity,
    Subscription,
    SubscriptionSpec,
    TopicSpec,
    TopicStatus,
)
from duly.wire.cloudevents import from_structured, to_headers

__all__ = ["RedisPubSubBroker"]

PUBSUB = "REDIS_PUBSUB"
COMMANDS = "REDIS_PUBSUB_COMMANDS"
WAIT_SECONDS = 0.5
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 3.0
_TEXT = "Pub/Sub keeps nothing: what is sent while nobody listens is gone"
_FIX = "Use redis:// (Streams), or accept the loss: allow_unsafe={'%s': 'reason'}."

_log = logging.getLogger("duly.brokers.redis")


class RedisPubSubBroker:
    """Redis Pub/Sub. url: ``redis+pubsub://`` or ``rediss+pubsub://``, as for Streams.

    allow_unsafe: finding code -> reason. Raises ConfigurationError.

    Guarantee: at most once; CONFIRMED means that somebody listened, not that it arrived. On
    failure: lost. Idempotence: none.
    """

    def __init__(self, url: str, *, allow_unsafe: Mapping[str, str] | None = None) -> None:
        self._settings: Settings = parse(url)
        self._reasons = dict(allow_unsafe or {})
        self.features = BrokerFeatures(reports_unrouted=True, payload_bytes_max=PAYLOAD_BYTES_MAX)
        self._publishing = Link(self._settings, purpose="publish")
        self._control = Link(self._settings, purpose="looking")
        self._locks = {self._publishing: threading.Lock(), self._control: threading.Lock()}
        self._started = False
        self._specs: dict[SubscriptionSpec, None] = {}
        self._subscriptions: list[_PubSubSubscription] = []

    # --- port -------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Ready to connect; does not wait for the server."""
        self._started = True

    async def declare(
        self, topics: Sequence[TopicSpec], subscriptions: Sequence[SubscriptionSpec]
    ) -> None:
        """Refuse what nobody has accepted; there is nothing to make. Raises UnsafeSettingError
        (REDIS_PUBSUB, REDIS_PUBSUB_COMMANDS), BrokerUnavailableError.
        """
        if PUBSUB not in self._reasons:
            raise UnsafeSettingError(f"{_TEXT}. {_FIX % PUBSUB}", code=PUBSUB)
        kinds = {topic.kind for topic in topics}
        kinds |= {topic.kind for spec in subscriptions for topic in spec.topics}
        if "command" in kinds and COMMANDS not in self._reasons:
            text = "Pub/Sub has no queue: a command may reach nobody, or every process"
            raise UnsafeSettingError(f"{text}. {_FIX % COMMANDS}", code=COMMANDS)
        await self._call(self._control, lambda link: link.ask("PING"))
        self._specs |= dict.fromkeys(subscriptions)

    async def publish(
        self, messages: Sequence[Message], *, deadline_seconds: float
    ) -> Sequence[Outcome]:
        """Send a batch to whoever listens; one outcome per message, in order."""
        if not messages:
            return []
        outcomes, sending = self._encoded(messages)
        if not sending:
            return [outcome or CONFIRMED for outcome in outcomes]
        data = b"".join(sending.values())

        def send(link: Link) -> list[Any]:
            return link.exchange(data, len(sending), timeout_seconds=deadline_seconds)

        left = Outcome(OutcomeKind.UNKNOWN, "no answer before the deadline")
        try:
            async with asyncio.timeout(deadline_seconds + WAIT_SECONDS):
                answers = await self._call(self._publishing, send)
            for index, answer in zip(sending, answers, strict=True):
                outcomes[index] = _outcome(self._publishing, answer)
        except OutcomeUnknownError as error:
            left = Outcome(OutcomeKind.UNKNOWN, f"sent, no answer: {error.detail}")
        except DulyError as error:
            left = Outcome(OutcomeKind.UNAVAILABLE, f"not sent: {error.detail}")
        except TimeoutError:
            self._publishing.interrupt()
            self._publishing = Link(self._settings, purpose="publish")
            self._locks[self._publishing] = threading.Lock()
        return [outcome or left for outcome in outcomes]

    def _encoded(
        self, messages: Sequence[Message]
    ) -> tuple[list[Outcome | None], dict[int, bytes]]:
        outcomes: list[Outcome | None] = [None] * len(messages)
        sending: dict[int, bytes] = {}
        for index, message in enumerate(messages):
            topic = TopicSpec(message.topic, message.kind)
            channel = stream_name(self._settings.prefix, topic)
            try:
                if len(message.payload) > PAYLOAD_BYTES_MAX:
                    raise ValueError(f"{len(message.payload)} bytes")
                sending[index] = command("PUBLISH", channel, _structured(message))
            except ValueError as error:
                reason = f"not encodable: {error}"[:200]
                outcomes[index] = Outcome(OutcomeKind.IMPOSSIBLE, reason)
        return outcomes, sending

    async def subscribe(self, spec: SubscriptionSpec) -> Subscription:
        """Start to listen. Raises as ``declare``."""
        await self.declare([], [spec])
        subscription = _PubSubSubscription(self._settings, spec)
        await asyncio.to_thread(subscription.start)
        self._subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        """Stop listening and close. Idempotent."""
        self._started = False
        await asyncio.gather(*(one.close() for one in self._subscriptions))
        self._subscriptions.clear()
        for link in (self._publishing, self._control):
            link.interrupt()

    # --- look -------------------------------------------------------------------------------------
    async def inspect(self) -> Sequence[Finding]:
        """That it loses messages, and what can be said of the server."""
        found = [Finding(PUBSUB, Severity.RED, _TEXT, _FIX % PUBSUB)]
        found.append(inspection.tls(self._settings))
        try:
            await self._call(self._control, lambda link: link.ask("PING"))
        except ConfigurationError as error:
            fix = "Correct the URL, or the server's settings for this login."
            return [*found, Finding("REDIS_REFUSED", Severity.RED, error.detail, fix)]
        except DulyError as error:
            fix = "Check the URL and the server."
            return [*found, Finding("REDIS_REACHABLE", Severity.RED, error.detail, fix)]
        return found

    async def topics(self) -> list[TopicStatus]:
        """What is listened to here. Raises BrokerUnavailableError."""
        pairs = [(spec.group, topic) for spec in self._specs for topic in spec.topics]
        names = [stream_name(self._settings.prefix, topic) for _, topic in pairs]
        if not names:
            return []
        said = await self._call(self._control, lambda link: link.ask("PUBSUB", "NUMSUB", *names))
        members = dict(zip(said[::2], said[1::2], strict=True))
        found: dict[TopicSpec, list[GroupStatus]] = {}
        for (group, topic), name in zip(pairs, names, strict=True):
            status = GroupStatus(group, None, 0, int(members[name.encode()]))
            found.setdefault(topic, []).append(status)
        return [TopicStatus(t.name, t.kind, 0, tuple(groups)) for t, groups in found.items()]

    async def peek(self, topic: str, *, after: str | None = None, limit: int = 20) -> list[Peeked]:
        """Raises OperatorError: nothing is kept."""
        del after, limit
        raise OperatorError(f"{topic}: Pub/Sub keeps nothing", code="PEEK_UNSUPPORTED")

    async def _call(self, link: Link, question: Any) -> Any:
        def work() -> Any:
            with self._locks[link]:
                link.open()
                return question(link)

        if not self._started:
            raise BrokerUnavailableError("the broker is not running")
        return await asyncio.to_thread(work)


class _PubSubSubscription:
    """A listening thread and what it has heard."""

    def __init__(self, settings: Settings, spec: SubscriptionSpec) -> None:
        self._settings, self._spec = settings, spec
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._heard: deque[tuple[TopicSpec, bytes]] = deque()
        self._topics = {stream_name(settings.prefix, t).encode(): t for t in spec.topics}
        self._stopping = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="duly-redis-listen", daemon=True)

    def start(self) -> None:
        """Listen; returns when the server has said so, or could not within a moment."""
        self._thread.start()
        self._listening.wait(CALL_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            client = redis.Redis(**client_arguments(self._settings), health_check_interval=10)
            try:
                with client, client.pubsub() as heard:  # type: ignore[no-untyped-call]
                    heard.subscribe(*self._topics)
                    self._listen(heard)
            except (exceptions.RedisError, OSError) as error:
                text = self._settings.censor(f"{type(error).__name__} {error}")[:300]
                _log.warning("%s: not listening, messages are lost: %s", self._spec.group, text)
                self._stopping.wait(RETRY_SECONDS)

    def _listen(self, heard: Any) -> None:
        waiting = set(self._topics)
        while not self._stopping.is_set():
            # A slow consumer stops the reading; the server then drops the connection.
            if len(self._heard) >= self._spec.prefetch:
                self._stopping.wait(0.01)
                continue
            got = heard.get_message(timeout=WAIT_SECONDS)
            if got is None:
                continue
            if got["type"] == "subscribe":
                waiting.discard(got["channel"])
                if not waiting:
                    self._listening.set()
            elif got["type"] == "message":
                self._heard.append((self._topics[got["channel"]], got["data"]))
                with suppress(RuntimeError):  # the loop was closed without closing us
                    self._loop.call_soon_threadsafe(self._wake.set)

    async def batches(self) -> AsyncIterator[list[Delivery]]:
        """What was heard, in batches of 1 to ``prefetch``, until closed."""
        while not self._stopping.is_set():
            batch: list[Delivery] = []
            while self._heard and len(batch) < self._spec.prefetch:
                topic, data = self._heard.popleft()
                message = from_structured(data, topic=topic.name, fallback_id="")
                batch.append(Delivery(message, None, f"{topic.kind}:{topic.name}", ""))
            if batch:
                yield batch
                continue
            self._wake.clear()
            if not self._heard:
                await self._wake.wait()

    async def ack(self, tokens: Sequence[Any]) -> None:
        """Nothing: there is nothing to acknowledge."""

    async def release(self, tokens: Sequence[Any]) -> None:
        """Nothing: what is not handled is lost."""

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        self._stopping.set()
        self._wake.set()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)


def _structured(message: Message) -> bytes:
    """The message as a CloudEvent in JSON. Raises ValueError for text that is none."""
    event: dict[str, Any] = dict(to_headers(message, prefix=""))
    try:
        msgspec.json.decode(message.payload)
        event["data"] = msgspec.Raw(message.payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        event["data_base64"] = b64encode(message.payload).decode()
    return msgspec.json.encode(event)


def _outcome(link: Link, answer: Any) -> Outcome:
    if answer == 0:
        return Outcome(OutcomeKind.UNROUTED, "nobody listens")
    try:
        raised(link, answer)
    except BrokerUnavailableError as error:
        return Outcome(OutcomeKind.UNAVAILABLE, error.detail)
    except DulyError as error:
        return Outcome(OutcomeKind.REFUSED, error.detail)
    return CONFIRMED
