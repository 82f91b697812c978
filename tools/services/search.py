"""An OpenSearch of our own: one node, free ports, loopback only, TLS and logins, jars by Maven.

No distribution of it is in the registries, but all of its parts are: the server, the two modules
that it does not start or cannot remove documents without, and the plugin that knows who may do
what.  They are laid out here as the distribution has them; the server's own ``main`` does the rest.
``duly`` may do everything; ``feeder`` what a sink needs, and no more; ``reader`` may read.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import ssl
import zipfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

from tools.services import certificates, folders, maven, processes
from tools.services.processes import ServerFailedError

__all__ = ["VERSION", "Search", "answers", "distribution", "find"]

VERSION = "2.19.4"  # the last 2.x of which every part is there; 3.x wants a newer Java
LAID_OUT = f"opensearch-{VERSION}"
ARTIFACTS = (
    f"org.opensearch:opensearch:{VERSION}",
    "org.opensearch:opensearch-plugin-classloader:2.19.1",  # one class, the last that was published
    "org.apache.logging.log4j:log4j-core:2.21.0",
    f"org.opensearch.plugin:transport-netty4-client:{VERSION}",
    f"org.opensearch.plugin:reindex-client:{VERSION}",
    f"org.opensearch.plugin:opensearch-security:{VERSION}.0:zip",
)
SECURITY = "opensearch-security"
# Each module: its class, and the beginnings of the names of its jars.
MODULES = {
    "transport-netty4": ("org.opensearch.transport.Netty4Plugin", ("netty-", "transport-netty4-")),
    "reindex": (
        "org.opensearch.index.reindex.ReindexPlugin",
        ("reindex-", "http", "commons-", "opensearch-rest-client-", "opensearch-ssl-config-"),
    ),
}
START_SECONDS = 120.0
STOP_SECONDS = 20.0
LOGIN, FEEDER, READER = "duly", "feeder", "reader"
PASSWORD = "search-t3sts"  # noqa: S105  # of a server that only this machine can reach
HASH = "$2y$04$dulydulydulydulydulydug7QEALCfTRqvgTsySvIQU2ikKGYFb4S"
JAVA = ("-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
# As its distribution starts it; its own end needs the first, and the log of it.
FLAGS = {
    "log4j.shutdownHookEnabled": "false",
    "log4j2.disable.jmx": "true",
    "io.netty.noUnsafe": "true",
    "io.netty.noKeySetOptimization": "true",
    "java.security.manager": "allow",
}
DESCRIPTOR = """description={name}
version={version}
name={name}
classname={main}
java.version=11
opensearch.version={version}
"""
POLICY = """grant {
  permission java.io.FilePermission "/proc/sys/net/core/somaxconn", "read";
  permission java.lang.RuntimePermission "accessDeclaredMembers";
  permission java.lang.RuntimePermission "getClassLoader";
  permission java.lang.RuntimePermission "setContextClassLoader";
  permission java.lang.reflect.ReflectPermission "suppressAccessChecks";
  permission java.net.SocketPermission "*", "accept,connect,resolve";
};
"""
SETTINGS = """cluster.name: duly
node.name: duly
discovery.type: single-node
network.host: 127.0.0.1
http.port: {port}
transport.port: {inside}
path.data: {home}/data
path.logs: {home}/logs
cluster.routing.allocation.disk.threshold_enabled: false
plugins.security.allow_default_init_securityindex: true
plugins.security.audit.type: noop
plugins.security.nodes_dn: ["CN=localhost"]
plugins.security.ssl.http.enabled: true
plugins.security.ssl.http.pemcert_filepath: certificate.pem
plugins.security.ssl.http.pemkey_filepath: key.pem
plugins.security.ssl.http.pemtrustedcas_filepath: certificate.pem
plugins.security.ssl.transport.enforce_hostname_verification: false
plugins.security.ssl.transport.pemcert_filepath: certificate.pem
plugins.security.ssl.transport.pemkey_filepath: key.pem
plugins.security.ssl.transport.pemtrustedcas_filepath: certificate.pem
"""
LOGGING = """status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %-5p %c{1.} %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""
META = '_meta: {{type: "{kind}", config_version: 2}}\n'
ROLES = """feeder:
  cluster_permissions: [cluster_composite_ops]
  index_permissions:
  - index_patterns: ["*"]
    allowed_actions:
    - crud
    - create_index
    - indices:admin/get
    - indices:admin/mapping/put
    - indices:admin/refresh*
    - indices:monitor/settings/get
reader:
  cluster_permissions: [cluster_composite_ops_ro]
  index_permissions:
  - index_patterns: ["*"]
    allowed_actions: [read]
"""
ROLE_OF = {LOGIN: "all_access", FEEDER: "feeder", READER: "reader"}
RIGHTS = {  # each file: its kind, and what it says
    "audit": ("audit", "config: {enabled: false}\n"),
    "internal_users": (
        "internalusers",
        "".join(f'{user}: {{hash: "{HASH}"}}\n' for user in ROLE_OF),
    ),
    "roles": ("roles", ROLES),
    "roles_mapping": (
        "rolesmapping",
        "".join(f"{role}: {{users: [{user}]}}\n" for user, role in ROLE_OF.items()),
    ),
}


def find() -> Path | None:
    """Where Java is, when the server's parts are here or Maven can fetch them; else None."""
    runtime = maven.java()
    if runtime is None or not (maven.fetched(LAID_OUT) or maven.can_fetch()):
        return None
    return Path(runtime)


def distribution() -> Path:
    """The server as its distribution lies on a disk, made at first. Raises ServerFailedError."""
    return maven.fetch(LAID_OUT, ARTIFACTS, arrange=_lay_out)


def _lay_out(folder: Path) -> None:
    for name, (main, beginnings) in MODULES.items():
        module = folder / "modules" / name
        module.mkdir(parents=True)
        for jar in folder.glob("*.jar"):
            if jar.name.startswith(beginnings):
                jar.rename(module / jar.name)
        text = DESCRIPTOR.format(name=name, main=main, version=VERSION)
        (module / "plugin-descriptor.properties").write_text(text)
        (module / "plugin-security.policy").write_text(POLICY)
    for name in ("bin", "extensions", "lib"):  # it wants them there, and may write nothing here
        (folder / name).mkdir()
    for jar in folder.glob("*.jar"):
        jar.rename(folder / "lib" / jar.name)
    for plugin in folder.glob("*.zip"):
        with zipfile.ZipFile(plugin) as packed:
            packed.extractall(folder / "plugins" / SECURITY)
        plugin.unlink()


def answers(port: int, certificate: Path) -> bool:
    """Whether an OpenSearch is there, and lets us in."""
    login = b64encode(f"{LOGIN}:{PASSWORD}".encode()).decode()
    context = ssl.create_default_context(cafile=str(certificate))
    asked = http.client.HTTPSConnection("127.0.0.1", port, timeout=5.0, context=context)
    try:
        asked.request("GET", "/_cluster/health", headers={"Authorization": f"Basic {login}"})
        answer = asked.getresponse()
        return answer.status == 200 and b'"cluster_name":"duly"' in answer.read(10_000)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


@dataclass
class Search:
    """One server. home: its folder. programs: the Java runtime. port, inside: where it answers, and
    where other nodes would come.
    """

    home: Path
    programs: Path
    port: int
    inside: int
    name: str = "search"

    @classmethod
    def create(cls, home: Path, programs: Path) -> Search:
        """Write its settings, users and certificate; the server is not started."""
        port, inside = processes.free_ports(2)
        server = cls(home, programs, port=port, inside=inside)
        config = home / "config"
        shutil.copytree(distribution() / "plugins" / SECURITY / "config", config / SECURITY)
        for name, (kind, text) in RIGHTS.items():
            (config / SECURITY / f"{name}.yml").write_text(META.format(kind=kind) + text)
        (config / "opensearch.yml").write_text(SETTINGS.format(**vars(server)))
        (config / "log4j2.properties").write_text(LOGGING)
        certificates.make(config)
        for name in ("data", "logs", "tmp"):
            (home / name).mkdir()
        user = folders.unprivileged_user()
        for path in (home, *home.rglob("*")):
            folders.give(path, user)
        return server

    @property
    def certificate(self) -> Path:
        """What a client has to trust."""
        return self.home / "config" / "certificate.pem"

    @property
    def url(self) -> str:
        """Where it answers, with the login that may do everything."""
        return self._url_of(LOGIN)

    @property
    def environment(self) -> dict[str, str]:
        """What tests read."""
        return {
            "DULY_TEST_SEARCH": self.url,
            "DULY_TEST_SEARCH_CA": str(self.certificate),
            "DULY_TEST_SEARCH_FEEDER": self._url_of(FEEDER),
            "DULY_TEST_SEARCH_READER": self._url_of(READER),
        }

    def _url_of(self, login: str) -> str:
        return f"https://{login}:{PASSWORD}@127.0.0.1:{self.port}"

    @property
    def _record(self) -> Path:
        return self.home / "process.json"

    def alive(self) -> bool:
        """Whether our process lives and lets us in."""
        return processes.alive(self._record) and answers(self.port, self.certificate)

    def start(self) -> None:
        """Start it and wait until it lets us in, on its data if there are any."""
        log, here = self.home / "log", distribution()
        flags = FLAGS | {
            "opensearch.path.home": str(here),
            "opensearch.path.conf": str(self.home / "config"),
            "java.io.tmpdir": str(self.home / "tmp"),
        }
        command = [str(self.programs), *JAVA, *(f"-D{name}={flags[name]}" for name in flags)]
        command += ["-cp", f"{here}/lib/*", "org.opensearch.bootstrap.OpenSearch"]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        user = folders.unprivileged_user()  # it refuses to run as root
        processes.launch(command, self._record, env=environment, log=log, user=user)
        if not processes.wait_for(
            lambda: self.alive() or not processes.alive(self._record), START_SECONDS
        ):
            raise ServerFailedError(f"OpenSearch is not ready:\n{processes.tail(log)}")
        if not self.alive():
            raise ServerFailedError(f"OpenSearch did not start:\n{processes.tail(log)}")

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
