"""An ActiveMQ Artemis of our own: free ports, loopback only, jars by Maven.

Acceptors for STOMP, for the server's own client, whose jars are among the server's, and with TLS
for both.  ``duly`` may do everything; ``reader`` may read and manage,
and send nothing; ``writer`` may send and read, and not manage.  Every confirmed write is on the
disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from tools.services import certificates, maven, processes
from tools.services.processes import ServerFailedError

__all__ = ["VERSION", "ActiveMQ", "answers", "find", "jars"]

VERSION = "2.57.0"
ARTIFACTS = (
    f"org.apache.artemis:artemis-server:{VERSION}",
    f"org.apache.artemis:artemis-stomp-protocol:{VERSION}",
    "org.slf4j:slf4j-simple:2.0.17",
)
START_SECONDS = 90.0
STOP_SECONDS = 20.0
LOGIN, READER, WRITER = "duly", "reader", "writer"
PASSWORD = "artemis-t3sts"  # noqa: S105  # of a server that only this machine can reach
JAVA = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
MAIN = "org.apache.activemq.artemis.core.server.embedded.Main"
RIGHTS = {
    "send": "all write",
    "consume": "all read write",
    "browse": "all read",
    "manage": "all read",
    "createAddress": "all read write",
    "deleteAddress": "all read write",
    "createDurableQueue": "all read",
    "deleteDurableQueue": "all read",
    "createNonDurableQueue": "all read write",
    "deleteNonDurableQueue": "all read write",
}
MANAGEMENT = RIGHTS | {"send": "all read"}
REPLIES = RIGHTS | {"send": "all read write"}
SETTINGS = """<configuration xmlns="urn:activemq"><core xmlns="urn:activemq:core">
<name>duly</name>
<persistence-enabled>true</persistence-enabled>
<journal-type>NIO</journal-type>
<journal-directory>{home}/data/journal</journal-directory>
<bindings-directory>{home}/data/bindings</bindings-directory>
<large-messages-directory>{home}/data/large</large-messages-directory>
<paging-directory>{home}/data/paging</paging-directory>
<journal-min-files>2</journal-min-files>
<journal-sync-transactional>{synced}</journal-sync-transactional>
<journal-sync-non-transactional>{synced}</journal-sync-non-transactional>
<jmx-management-enabled>false</jmx-management-enabled>
<max-disk-usage>-1</max-disk-usage>
<global-max-size>100Mb</global-max-size>
<acceptors>
<acceptor name="stomp">tcp://127.0.0.1:{port}?protocols=STOMP;securityDomain=activemq</acceptor>
<acceptor name="core">tcp://127.0.0.1:{core}?protocols=CORE;securityDomain=activemq</acceptor>
<acceptor name="tls">tcp://127.0.0.1:{tls}?protocols=CORE,STOMP;securityDomain=activemq;sslEnabled=true;keyStoreType=PEM;\
keyStorePath={home}/tls.pem</acceptor>
</acceptors>
<security-settings>
<security-setting match="#">{rights}</security-setting>
<security-setting match="activemq.management">{management}</security-setting>
<security-setting match="*.reply.#">{replies}</security-setting>
</security-settings>
<address-settings><address-setting match="#">
<dead-letter-address>DLQ</dead-letter-address>
<address-full-policy>PAGE</address-full-policy>
</address-setting></address-settings>
</core></configuration>
"""
LOGINS = """activemq {{
  org.apache.activemq.artemis.spi.core.security.jaas.PropertiesLoginModule required
  baseDir="{home}" org.apache.activemq.jaas.properties.user="users.properties"
  org.apache.activemq.jaas.properties.role="roles.properties";
}};
"""


def find() -> Path | None:
    """Where Java is, when the server's jars are here or Maven can fetch them; else None."""
    runtime = maven.java()
    if runtime is None or not (maven.fetched(f"artemis-{VERSION}") or maven.can_fetch()):
        return None
    return Path(runtime)


def jars() -> Path:
    """The server's jars, fetched at first. Raises ServerFailedError."""
    return maven.fetch(f"artemis-{VERSION}", ARTIFACTS)


def answers(port: int) -> bool:
    """Whether something there speaks STOMP and lets us in."""
    hello = f"CONNECT\naccept-version:1.2\nhost:x\nlogin:{LOGIN}\npasscode:{PASSWORD}\n\n\0"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as wire:
            wire.sendall(hello.encode())
            return wire.recv(9) == b"CONNECTED"
    except OSError:
        return False


@dataclass
class ActiveMQ:
    """One server. home: its folder. programs: the Java runtime. port, core, tls: where it answers
    STOMP, its own client, and both.
    """

    home: Path
    programs: Path
    port: int
    core: int
    tls: int
    name: str = "activemq"

    @classmethod
    def create(cls, home: Path, programs: Path, *, synced: bool = True) -> ActiveMQ:
        """Write its settings; the server is not started. synced: whether it waits for its disk."""
        port, core, tls = processes.free_ports(3)
        server = cls(home, programs, port=port, core=core, tls=tls)
        (home / "etc").mkdir()
        text = SETTINGS.format(
            home=home,
            port=port,
            core=core,
            tls=tls,
            rights=_permissions(RIGHTS),
            management=_permissions(MANAGEMENT),
            replies=_permissions(REPLIES),
            synced=str(synced).lower(),
        )
        (home / "etc" / "broker.xml").write_text(text)
        (home / "login.config").write_text(LOGINS.format(home=home))
        users = (LOGIN, READER, WRITER)
        (home / "users.properties").write_text("".join(f"{u}={PASSWORD}\n" for u in users))
        roles = dict(zip(("all", "read", "write"), users, strict=True))
        (home / "roles.properties").write_text("".join(f"{r}={u}\n" for r, u in roles.items()))
        certificates.make(home)
        return server

    @property
    def url(self) -> str:
        """Where it answers plainly, with the login that may do everything."""
        return f"stomp://{LOGIN}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {
            "DULY_TEST_ACTIVEMQ": self.url,
            "DULY_TEST_ACTIVEMQ_CORE": f"127.0.0.1:{self.core}",
            "DULY_TEST_ACTIVEMQ_JARS": str(jars()),
            "DULY_TEST_ACTIVEMQ_TLS": f"stomp+tls://{LOGIN}:{PASSWORD}@localhost:{self.tls}"
            f"?cacertfile={self.home}/certificate.pem",
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
        command = [str(self.programs), *JAVA]
        command += [f"-Djava.security.auth.login.config={self.home}/login.config"]
        command += [QUIET, "-cp", f"{jars()}/*", MAIN, str(self.home)]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        processes.launch(command, self._record, env=environment, log=log)
        if not processes.wait_for(
            lambda: self.alive() or not processes.alive(self._record), START_SECONDS
        ):
            raise ServerFailedError(f"ActiveMQ is not ready:\n{processes.tail(log)}")
        if not self.alive():
            raise ServerFailedError(f"ActiveMQ did not start:\n{processes.tail(log)}")

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


def _permissions(rights: dict[str, str]) -> str:
    return "".join(
        f'<permission type="{kind}" roles="{",".join(roles.split())}"/>'
        for kind, roles in rights.items()
    )
