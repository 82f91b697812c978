"""What an sftp:// URL says; logins and host keys are tried in tests/integration."""

from __future__ import annotations

import builtins
import logging
from pathlib import Path
from typing import Any

import pytest

from duly.errors import ConfigurationError, MissingExtraError
from duly.files import ssh


def parse(url: str, **options: Any) -> ssh.Settings:
    return ssh.parse(url, known_hosts="/none", key=None, **options)


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("", "."),
        ("/", "/"),
        ("/in", "/in"),
        ("/in/", "/in"),
        ("/in/a%20b", "/in/a b"),
        ("/~/in", "in"),
        ("/~/", "."),
    ],
)
def test_the_folder(path: str, folder: str) -> None:
    assert parse(f"sftp://me@bank{path}").folder == folder


def test_the_rest_of_a_url() -> None:
    found = parse("sftp://me%40x:p%3Aw@bank:2222/in", ciphers=("a",), timeout_seconds=3.0)
    assert (found.host, found.port, found.user, found.password) == ("bank", 2222, "me@x", "p:w")
    assert (found.ciphers, found.timeout_seconds) == (("a",), 3.0)
    assert "p:w" not in repr(found)
    assert found.shown == "sftp://bank:2222/in"


@pytest.mark.parametrize(
    "url",
    ["sftp://bank/in", "sftp:///in", "ssh://me@bank/", "sftp://me@bank:x/", "sftp://me@bank/?a=1"],
)
def test_a_bad_url_is_told_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url.replace("me@", "me:secret@"))
    assert caught.value.code == "BATCH_DESTINATION"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},  # the known_hosts file is not there
        {"password_env": "DULY_NOT_SET"},
        {"key": "/no/such/key"},
    ],
)
async def test_what_is_missing_here_is_told_before_anything_is_sent(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    known = tmp_path / "known_hosts"
    if options:
        known.write_text("")
    key = options.pop("key", None)
    settings = ssh.parse("sftp://me@127.0.0.1:1/", known_hosts=known, key=key, **options)
    with pytest.raises(ConfigurationError) as caught:
        async with ssh.connected(settings):
            pass
    assert caught.value.code == "FILE_TARGET_LOGIN"


async def test_without_the_driver_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "asyncssh":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"duly\[sftp\]"):
        async with ssh.connected(parse("sftp://me@bank/")):
            pass


class Wire:
    """A connection of asyncssh as far as its packets go: each is preceded by an empty one."""

    def __init__(self, cipher: str) -> None:
        self._cipher, self.sent = cipher, list[int]()

    def get_extra_info(self, name: str) -> str:
        assert name == "send_cipher"
        return self._cipher

    def send_packet(self, kind: int, *args: bytes, handler: Any = None) -> None:
        if kind != 2:
            self.send_packet(2, b"")
        self.sent.append(kind)


@pytest.mark.parametrize(
    ("cipher", "sent"),
    [
        ("aes128-gcm@openssh.com", [94, 94]),
        ("chacha20-poly1305@openssh.com", [94, 94]),
        ("aes128-cbc", [2, 94, 2, 94]),
        ("aes256-ctr", [2, 94, 2, 94]),
    ],
)
def test_empty_packets_are_sent_only_where_a_cipher_needs_them(
    cipher: str, sent: list[int]
) -> None:
    wire = Wire(cipher)
    ssh._without_padding(wire)
    wire.send_packet(94, b"data")
    wire.send_packet(94, b"data")
    assert wire.sent == sent


def test_a_library_that_talks_is_quiet_unless_it_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger("asyncssh")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    ssh._quiet()
    assert logger.level == logging.WARNING
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    ssh._quiet()
    assert logger.level == logging.DEBUG
