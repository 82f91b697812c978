"""An SSH server of asyncssh in a thread of its own, with the habits of servers in the field."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import asyncssh
from asyncssh import sftp as inner
from asyncssh.packet import String, UInt32

START_SECONDS = 20.0
USER, PASSWORD = "bank", "correct horse"
STATUS, WRITE = 101, 6
OK, EOF, FAILURE = 0, 1, 4


@dataclass(frozen=True)
class Habits:
    """What it does. extensions: announced beyond the version; check_file: SHA-256 on request.

    generic: every failure is "Failure". takes: a file that was written is gone when it is closed.
    keeps_length: neither opening nor setstat shortens a file. no_setstat: attributes are refused.
    short: of this many writes only half is done. shuffled: answers to writes come in other orders.
    closes_after: so many bytes of writes cost the connection. hangs: nothing after the login.
    quota: bytes that a file may have. read_only: nothing is written. lost_rename: a rename onto a
    name that ends in this is done and costs the connection.
    """

    extensions: bool = True
    check_file: bool = False
    generic: bool = False
    takes: bool = False
    keeps_length: bool = False
    no_setstat: bool = False
    short: int = 0
    shuffled: bool = False
    closes_after: int = 0
    hangs: bool = False
    quota: int = 0
    read_only: bool = False
    lost_rename: str = ""


class _Handler(inner.SFTPServerHandler):
    """Answers as the habits say."""

    def __init__(self, server: Any, reader: Any, writer: Any, sftp_version: int) -> None:
        super().__init__(server, reader, writer, sftp_version)
        self._habits: Habits = server.habits
        self._held: list[tuple[int, int | None, tuple[bytes, ...]]] = []
        self._writes: set[int] = set()
        if not self._habits.extensions:
            self._extensions = []
            known = self._packet_handlers.items()
            self._packet_handlers = {k: v for k, v in known if isinstance(k, int)}
        if self._habits.check_file:
            self._packet_handlers = {**self._packet_handlers, b"check-file-name": _Handler._check}
            self._return_types = {**self._return_types, b"check-file-name": 201}

    async def _check(self, packet: Any) -> Any:
        path = packet.get_string()
        assert packet.get_string() == b"sha256"
        content = Path(os.fsdecode(self._server.map_path(path))).read_bytes()
        return _Digest(sha256(content).digest())

    async def _process_packet(self, pkttype: int, pktid: int, packet: Any) -> None:
        if pkttype == WRITE:
            self._writes.add(pktid)
        await super()._process_packet(pkttype, pktid, packet)

    def send_packet(self, pkttype: int, pktid: int | None, *args: bytes) -> None:
        if pkttype == STATUS and self._habits.generic:
            code = int.from_bytes(args[1][:4], "big")
            if code not in (OK, EOF):
                args = (args[0], UInt32(FAILURE) + String("Failure") + String(""))
        if self._habits.shuffled and pktid in self._writes:
            self._writes.discard(pktid)
            self._held.append((pkttype, pktid, args))
            if len(self._held) == 1:
                asyncio.get_running_loop().call_later(0.02, self._release)
            return
        super().send_packet(pkttype, pktid, *args)

    def _release(self) -> None:
        held, self._held = self._held[::-1], []
        for pkttype, pktid, args in held:
            super().send_packet(pkttype, pktid, *args)

    async def run(self) -> None:
        if self._habits.hangs:
            await asyncio.sleep(3600)
        await super().run()


@dataclass
class _Digest:
    value: bytes

    def encode(self, version: int) -> bytes:
        return String(b"sha256") + self.value


inner.SFTPServerHandler = _Handler  # type: ignore[misc]  # asyncssh asks for no other


class _Server(asyncssh.SFTPServer):
    """Keeps its files below one folder."""

    def __init__(self, chan: Any, owner: CrookedSftp) -> None:
        super().__init__(chan, chroot=os.fsencode(owner.folder))
        self.owner, self.habits, self._taken = owner, owner.habits, 0

    def open(self, path: bytes, pflags: int, attrs: Any) -> Any:
        if self.habits.keeps_length:
            pflags &= ~asyncssh.FXF_TRUNC
        if self.habits.read_only and pflags & asyncssh.FXF_WRITE:
            raise asyncssh.SFTPPermissionDenied("read only")
        return super().open(path, pflags, attrs)

    def write(self, file_obj: Any, offset: int, data: bytes) -> Any:
        self._taken += len(data)
        habits, owner = self.habits, self.owner
        if habits.quota and offset + len(data) > habits.quota:
            raise asyncssh.SFTPQuotaExceeded("quota")
        if habits.closes_after and self._taken > habits.closes_after:
            self.connection.abort()
        owner.received += len(data)
        if owner.shorts:
            owner.shorts -= 1
            super().write(file_obj, offset, data[: len(data) // 2])
            return len(data)
        return super().write(file_obj, offset, data)

    def close(self, file_obj: Any) -> None:
        name = os.fsdecode(file_obj.name)
        super().close(file_obj)
        if self.habits.takes and file_obj.mode != "rb":
            Path(name).unlink()

    def setstat(self, path: bytes, attrs: Any) -> None:
        if self.habits.no_setstat or self.habits.keeps_length:
            raise asyncssh.SFTPPermissionDenied("no")
        super().setstat(path, attrs)

    fsetstat = lsetstat = setstat

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        super().rename(oldpath, newpath)
        self._lose(newpath)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        super().posix_rename(oldpath, newpath)
        self._lose(newpath)

    def _lose(self, newpath: bytes) -> None:
        ending = self.habits.lost_rename
        if ending and os.fsdecode(newpath).endswith(ending) and not self.owner.lost:
            self.owner.lost += 1
            self.connection.abort()


class _Door(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return (username, password) == (USER, PASSWORD)


class CrookedSftp:
    """A server on a free port, over ``folder``; use it as ``with CrookedSftp(...) as server``."""

    def __init__(self, folder: Path, habits: Habits | None = None) -> None:
        self.folder, self.habits = folder, habits or Habits()
        self.shorts = self.habits.short
        self.received = self.lost = self.port = 0
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def known_hosts(self) -> str:
        """The line that names it."""
        return f"[127.0.0.1]:{self.port} {self.key.export_public_key().decode()}"

    @property
    def url(self) -> str:
        """Its folder, with the password."""
        return f"sftp://{USER}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/"

    async def _start(self) -> None:
        self._acceptor = await asyncssh.create_server(
            _Door,
            "127.0.0.1",
            self.port,
            server_host_keys=[self.key],
            sftp_factory=lambda chan: _Server(chan, self),
            compression_algs=None,
        )
        self.port = self._acceptor.get_port()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)
        self._loop.close()

    async def _stop(self) -> None:
        self._acceptor.close()
        await self._acceptor.wait_closed()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
