"""A process of the App under test: relay and consumers, to be killed.

Runs until SIGTERM (drains, exit 0) or until its armed failpoint ends it.  Everything it has open is
in its journal, ``worker-PID.jsonl``."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from duly.brokers.activemq.broker import ActiveMQBroker
from duly.brokers.embedded.broker import EmbeddedBroker
from duly.brokers.kafka.broker import KafkaBroker
from duly.brokers.kafka.consumer import Reader
from duly.brokers.nats.broker import NatsBroker
from duly.brokers.rabbitmq.broker import RabbitMQBroker
from duly.brokers.redis.broker import RedisBroker
from duly.observe.facts import Fact, LeaseLost, LeaseTaken
from duly.testing.failpoints import arm, parse
from duly.testing.journal import Journal
from tests.crash.shop import Gateway, make_app
from tests.crash.stage import QUEUE
from tests.crash.watched import REFUSE_CHANCE, Watch, WatchedBroker, pulse


def main(config: dict[str, Any]) -> int:
    """Be a worker until stopped; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(name)s %(message)s")
    random.seed(f"{config['seed']}-{os.getpid()}")
    journal = Journal(f"{config['folder']}/worker-{os.getpid()}.jsonl")
    watch = Watch(journal)
    plans = parse(config.get("plan", ""))
    journal.append("start", plan=config.get("plan", ""), lease=config["lease"])
    pulse(journal)
    asyncio.run(_serve(config, watch, plans))
    journal.append("end")
    return 0


async def _serve(config: dict[str, Any], watch: Watch, plans: list[Any]) -> None:
    if config["broker"].startswith("embedded"):
        inner: Any = EmbeddedBroker(config["broker"], lease_seconds=config["broker_lease"])
    elif config["broker"].startswith("stomp"):
        inner = ActiveMQBroker(config["broker"])
    elif config["broker"].startswith("kafka"):
        _tell_moves(watch)
        session = int(config["broker_lease"])  # whole seconds, never more than the lease
        inner = KafkaBroker(f"{config['broker']}?session_timeout={session}")
    elif config["broker"].startswith("nats"):
        inner = NatsBroker(config["broker"])
    elif config["broker"].startswith("redis"):
        inner = RedisBroker(f"{config['broker']}&lease={max(0.5, config['broker_lease'])}s")
    else:
        inner = RabbitMQBroker(config["broker"])
    gateway = Gateway(f"{config['folder']}/gateway.jsonl", config["database"])
    app = make_app(
        config,
        broker=WatchedBroker(
            inner,
            watch,
            healed=Path(config["folder"]) / "healed",
            chance=0.0 if config.get("impatient") or config.get("slow") else REFUSE_CHANCE,
        ),
        gateway=gateway,
    )
    app.hooks.add(lambda fact: heard(fact, watch))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    arm(*plans, before=watch.dying, every=watch.passed)
    async with app.running(roles=config.get("roles")):
        watch.journal.append("ready")
        await stop.wait()
        watch.journal.append("stopping")


def _tell_moves(watch: Watch) -> None:
    """Write down when Kafka has taken partitions from this process while it lives."""

    def told(usual: Callable[..., None]) -> Callable[..., None]:
        def moved(reader: Reader, consumer: Any, partitions: list[Any]) -> None:
            usual(reader, consumer, partitions)
            group = reader.group.partition(".")[2]
            group = QUEUE if group.endswith(f".{QUEUE}") else group
            places = [f"{p.topic}/{p.partition}" for p in partitions]
            watch.journal.append("moved", group=group, places=places)

        return moved

    for name in ("_revoked", "_lost"):
        setattr(Reader, name, told(getattr(Reader, name)))


def heard(fact: Fact, watch: Watch) -> None:
    """Write down what becomes of leases."""
    if isinstance(fact, LeaseLost):
        watch.journal.append("lost", names=list(fact.names)[:3])
    elif isinstance(fact, LeaseTaken):
        watch.journal.append("taken", names=list(fact.names))
