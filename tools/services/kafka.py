"""An Apache Kafka of our own: one node in KRaft mode, free ports, loopback only, jars by Maven.

Five listeners, because a Kafka client goes where the server *says* it is, not where it was told:
plain for tests, one with a login, one with TLS and a login, one that says it is at ``through`` - a
port where a test may stand a proxy - and the controller's own.  Who comes in plain may do
everything; a login may do what ``reader`` may: nothing, until an ACL allows it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from tools.services import certificates, maven, processes
from tools.services.processes import ServerFailedError

__all__ = ["VERSION", "Kafka", "answers", "find", "jars"]

VERSION = "4.3.1"
ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{VERSION}", "org.slf4j:slf4j-simple:1.7.36")
START_SECONDS = 90.0
STOP_SECONDS = 20.0
LOGIN = "duly"
READER = "reader"
PASSWORD = "kafka-t3sts"  # noqa: S105  # of a server that only this machine can reach
# A quarter of a gigabyte is plenty for tests; the simple collector and compiler start fastest.
JAVA = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
META = "version=1\ncluster.id=ZHVseS1rYWZrYS10ZXN0cw\nnode.id=1\ndirectory.id={directory}\n"
SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAIN
listeners=PLAIN://127.0.0.1:{port},PROXIED://127.0.0.1:{behind},LOGIN://127.0.0.1:{login},\
TLS://127.0.0.1:{tls},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{port},PROXIED://127.0.0.1:{through},\
LOGIN://127.0.0.1:{login},TLS://127.0.0.1:{tls}
listener.security.protocol.map=PLAIN:PLAINTEXT,PROXIED:PLAINTEXT,LOGIN:SASL_PLAINTEXT,\
TLS:SASL_SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.login.plain.sasl.jaas.config={users}
listener.name.tls.plain.sasl.jaas.config={users}
ssl.keystore.type=PEM
ssl.keystore.location={home}/tls.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:duly
log.dirs={home}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
controlled.shutdown.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=2
background.threads=1
log.cleaner.dedupe.buffer.size=2097152
"""


def find() -> Path | None:
    """Where Java is, when Kafka's jars are here or Maven can fetch them; else None."""
    runtime = maven.java()
    if runtime is None or not (maven.fetched(f"kafka-{VERSION}") or maven.can_fetch()):
        return None
    return Path(runtime)


def jars() -> Path:
    """Kafka's jars, fetched at first. Raises ServerFailedError."""
    return maven.fetch(f"kafka-{VERSION}", ARTIFACTS)


def answers(port: int) -> bool:
    """Whether something there speaks Kafka: answers ApiVersions with the number it was asked by."""
    request = struct.pack(">hhih", 18, 0, 4711, -1)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as wire:
            wire.sendall(struct.pack(">i", len(request)) + request)
            return wire.recv(8)[4:8] == struct.pack(">i", 4711)
    except OSError:
        return False


@dataclass
class Kafka:
    """One server. home: its folder. programs: the Java runtime. port, login, tls: where it answers
    plainly, with a login, and over TLS with a login. behind, through: where a proxy goes to, and
    where it must stand.
    """

    home: Path
    programs: Path
    port: int
    login: int
    tls: int
    behind: int
    through: int
    controller: int
    name: str = "kafka"

    @classmethod
    def create(cls, home: Path, programs: Path) -> Kafka:
        """Write its settings and an empty log; the server is not started."""
        port, login, tls, behind, through, controller = processes.free_ports(6)
        server = cls(
            home,
            programs,
            port=port,
            login=login,
            tls=tls,
            behind=behind,
            through=through,
            controller=controller,
        )
        users = "org.apache.kafka.common.security.plain.PlainLoginModule required " + " ".join(
            f'user_{name}="{PASSWORD}"' for name in (LOGIN, READER)
        )
        places = {k: v for k, v in vars(server).items() if isinstance(v, int)}
        text = SETTINGS.format(home=home, users=f"{users};", **places)
        (home / "server.properties").write_text(text)
        (home / "data").mkdir()
        # What the storage tool would write, without the two seconds of another Java.
        meta = META.format(directory=f"ZHVseS1rYWZrYS1k{port:05}A")
        (home / "data" / "meta.properties").write_text(meta)
        certificates.make(home)
        return server

    @property
    def url(self) -> str:
        """Where it answers plainly; who comes there may do everything."""
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {
            "DULY_TEST_KAFKA": self.url,
            "DULY_TEST_KAFKA_LOGIN": f"kafka://{LOGIN}:{PASSWORD}@127.0.0.1:{self.login}",
            "DULY_TEST_KAFKA_READER": f"kafka://{READER}:{PASSWORD}@127.0.0.1:{self.login}",
            "DULY_TEST_KAFKA_TLS": f"kafkas://{LOGIN}:{PASSWORD}@localhost:{self.tls}"
            f"?cacertfile={self.home}/certificate.pem",
            "DULY_TEST_KAFKA_PROXY": f"{self.through}:{self.behind}",
            "DULY_TEST_KAFKA_SERVER": f"Apache Kafka {VERSION}",
        }

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def alive(self) -> bool:
        """Whether our process lives and its port answers."""
        return processes.alive(self._record) and answers(self.port)

    def start(self) -> None:
        """Start it and wait until it answers, on its data if there are any."""
        log = self.home / "log"
        command = [str(self.programs), *JAVA, "-cp", f"{jars()}/*", "kafka.Kafka"]
        command += ["server.properties"]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        processes.launch(command, self._record, env=environment, log=log)
        if not processes.wait_for(
            lambda: self.alive() or not processes.alive(self._record), START_SECONDS
        ):
            raise ServerFailedError(
                f"Kafka is not ready after {START_SECONDS:.0f} s:\n{processes.tail(log)}"
            )
        if not self.alive():
            raise ServerFailedError(f"Kafka did not start:\n{processes.tail(log)}")

    def stop(self) -> None:
        """Stop it as an operator would."""
        pid = processes.pid_of(self._record)
        signals = {pid: signal.SIGTERM} if pid else None
        processes.end(self._record, signals=signals, within_seconds=STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL it."""
        processes.end(self._record)

    def remove(self) -> None:
        """End it at once and delete its data."""
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)  # made new by whoever needs it next
