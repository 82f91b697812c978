"""Our own places of delivery, held to the public suite with what required.toml pins."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from duly.files.ftp import FtpTarget
from duly.files.local import LocalTarget
from duly.files.sftp import SftpTarget
from duly.targets import FileFeatures, FileTarget
from duly.testing.fault_proxy import SILENT, FaultProxy
from duly.testing.file_conformance import FileConformance, Target
from tests.servers import ftp_server as ftp
from tests.servers.crooked_sftp import CrookedSftp, Habits
from tests.servers.ftp_server import ftp_server

REQUIRED = tomllib.loads((Path(__file__).parent / "required.toml").read_text())["files"]
SECONDS, SILENCE_SECONDS = 20.0, 2.0


def required(name: str) -> FileFeatures:
    return FileFeatures(**REQUIRED[name])


def test_every_adapter_is_pinned_and_nothing_else() -> None:
    assert set(REQUIRED) == {"local", "sftp openssh", "sftp asyncssh", "ftp", "ftps"}


def behind(
    port: int, make: Callable[[int], FileTarget]
) -> Callable[[], AbstractAsyncContextManager[tuple[FileTarget, Callable[[], None]]]]:
    """A target that is reached through a proxy. make: by the proxy's port."""

    @asynccontextmanager
    async def stalled() -> AsyncIterator[tuple[FileTarget, Callable[[], None]]]:
        proxy = await asyncio.to_thread(FaultProxy("127.0.0.1", port).start)
        try:
            yield make(proxy.port), lambda: proxy.set(SILENT)
        finally:
            await asyncio.to_thread(proxy.stop)

    return stalled


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    pair = ["-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    command = [*words.split(), "subjectAltName=IP:127.0.0.1,DNS:localhost", *pair]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    both = (folder / "key").read_text() + (folder / "cert").read_text()
    (folder / "both").write_text(both)
    return folder / "both"


class TestLocal(FileConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        folder = tmp_path / "in"
        folder.mkdir()
        return Target(
            make=lambda: LocalTarget(folder.as_uri()),
            features=required("local"),
            folder=folder,
            missing=lambda: LocalTarget(f"{folder.as_uri()}/none"),
            stalled=None,
        )


class TestSftpOpenssh(FileConformance):
    @pytest.fixture
    def target(self, sftp_url: str, tmp_path: Path) -> Target:
        parts = urlsplit(sftp_url)
        known_hosts = os.environ["DULY_TEST_SFTP_KNOWN_HOSTS"]

        def make(
            port: int, *, path: str = parts.path, known: str = known_hosts, silence: float = SECONDS
        ) -> FileTarget:
            url = f"sftp://{parts.username}@127.0.0.1:{port}{path}"
            key = os.environ["DULY_TEST_SFTP_KEY"]
            return SftpTarget(url, known_hosts=known, key=key, timeout_seconds=silence)

        port = parts.port or 22
        named = tmp_path / "known_hosts"

        def through(proxied: int) -> FileTarget:
            key = Path(known_hosts).read_text().partition(" ")[2]
            named.write_text(f"[127.0.0.1]:{proxied} {key}")
            return make(proxied, known=str(named), silence=SILENCE_SECONDS)

        return Target(
            make=lambda: make(port),
            features=required("sftp openssh"),
            folder=Path(parts.path),
            missing=lambda: make(port, path=f"{parts.path}/none"),
            stalled=behind(port, through),
        )


class TestSftpAsyncssh(FileConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[Target]:
        folder = tmp_path / "in"
        folder.mkdir()
        with CrookedSftp(folder, Habits(check_file=True)) as server:
            known = tmp_path / "known_hosts"
            known.write_text(server.known_hosts)

            def make(port: int, *, path: str = "", silence: float = SECONDS) -> FileTarget:
                known.write_text(server.known_hosts.replace(f":{server.port}", f":{port}"))
                url = server.url.replace(f":{server.port}", f":{port}") + path
                return SftpTarget(url, known_hosts=known, timeout_seconds=silence)

            yield Target(
                make=lambda: make(server.port),
                features=required("sftp asyncssh"),
                folder=folder,
                missing=lambda: make(server.port, path="none"),
                stalled=behind(server.port, lambda at: make(at, silence=SILENCE_SECONDS)),
            )


class TestFtp(FileConformance):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[Target]:
        folder = tmp_path / "in"
        folder.mkdir()
        with ftp_server(folder) as port:

            def make(port: int = port, *, path: str = "", silence: float = SECONDS) -> FileTarget:
                url = f"ftp://{ftp.USER}:{ftp.PASSWORD}@127.0.0.1:{port}/{path}"
                return FtpTarget(url, timeout_seconds=silence)

            yield Target(
                make=make,
                features=required("ftp"),
                folder=folder,
                missing=lambda: make(path="none"),
                stalled=behind(port, lambda at: make(at, silence=SILENCE_SECONDS)),
            )

    async def test_what_the_server_leaves_out_is_done_without(self, tmp_path: Path) -> None:
        """Without MLST a name is asked for by its size, and by a list where that says nothing."""
        with ftp_server(tmp_path, plain=True) as port:
            url = f"ftp://{ftp.USER}:{ftp.PASSWORD}@127.0.0.1:{port}/"
            (tmp_path / "file").write_bytes(b"data")
            async with FtpTarget(url).open() as session:
                assert await session.look("nothing") is None
                there = await session.look("file")
                assert there is not None
                assert there.size_bytes == 4


class TestFtps(FileConformance):
    @pytest.fixture
    def target(self, tmp_path: Path, certificate: Path) -> Iterator[Target]:
        folder = tmp_path / "in"
        folder.mkdir()
        with ftp_server(folder, certificate=certificate, hashes=True) as port:

            def make(port: int = port, *, path: str = "", silence: float = SECONDS) -> FileTarget:
                url = f"ftps://{ftp.USER}:{ftp.PASSWORD}@127.0.0.1:{port}/{path}"
                return FtpTarget(url, ca_file=certificate, timeout_seconds=silence)

            yield Target(
                make=make,
                features=required("ftps"),
                folder=folder,
                missing=lambda: make(path="none"),
                stalled=behind(port, lambda at: make(at, silence=SILENCE_SECONDS)),
            )
