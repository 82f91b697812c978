"""What an ftp:// URL says and how replies are read; the dialogue is in tests/conformance."""

from __future__ import annotations

import ftplib
from pathlib import Path

import pytest

from duly.errors import ConfigurationError, FileTargetUnavailableError
from duly.files.ftp import FtpTarget, _facts, _FtpSession
from duly.targets import Remote
from tests.servers.ftp_server import PASSWORD, USER, ftp_server


@pytest.mark.parametrize(
    "url",
    [
        "ftp://bank/in",
        "ftps:///in",
        "http://me@bank/",
        "ftp://me@bank:x/",
        "ftp://me@bank/a%0d%0aDELE%20b",
        "ftp://me%0a:secret@bank/",
    ],
)
def test_a_bad_url_is_told_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FtpTarget(url)
    assert caught.value.code == "BATCH_DESTINATION"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (" Type=file;Size=12;Modify=20260101000000; a b.csv", Remote(12)),
        (" type=dir;modify=2; x", Remote(0, "folder")),
        (" type=OS.unix=symlink;size=3; x", Remote(3, "link")),
        (" size=3; x", Remote(3, "other")),
    ],
)
def test_a_line_of_mlst(line: str, expected: Remote) -> None:
    assert _facts(line) == expected


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ftplib.error_perm("552 quota"), "FILE_TARGET_FULL"),
        (ftplib.error_temp("452 full"), "FILE_TARGET_FULL"),
        (ftplib.error_perm("550 no"), "FILE_TARGET_DENIED"),
        (ftplib.error_perm("502 what"), "FILE_TARGET_UNSUPPORTED"),
        (ftplib.error_perm("599 no"), "FILE_TARGET_REFUSED"),
        (ftplib.error_temp("421 bye"), "FILE_TARGET_UNAVAILABLE"),
        (EOFError(), "FILE_TARGET_UNAVAILABLE"),
        (TimeoutError("timed out"), "FILE_TARGET_UNAVAILABLE"),
    ],
)
def test_what_a_reply_means(error: Exception, code: str) -> None:
    session = _FtpSession(FtpTarget("ftp://me:pw@bank/")._settings)
    mapped = session._mapped(error, "file")
    session.end()
    assert getattr(mapped, "code", "") == code


async def test_a_wrong_password_and_a_wrong_certificate(tmp_path: Path) -> None:
    with ftp_server(tmp_path) as port:
        for url, code in (
            (f"ftp://{USER}:secret@127.0.0.1:{port}/", "FILE_TARGET_LOGIN"),
            (f"ftps://{USER}:secret@127.0.0.1:{port}/", "FILE_TARGET_LOGIN"),
        ):
            with pytest.raises(ConfigurationError) as caught:
                async with FtpTarget(url).open():
                    pass
            assert caught.value.code == code
            assert "secret" not in str(caught.value)


async def test_the_password_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ftp_server(tmp_path) as port:
        target = FtpTarget(f"ftp://{USER}@127.0.0.1:{port}/", password_env="BANK_PASSWORD")
        with pytest.raises(ConfigurationError, match="BANK_PASSWORD is not set"):
            async with target.open():
                pass
        monkeypatch.setenv("BANK_PASSWORD", PASSWORD)
        async with target.open() as session:
            assert await session.look("nothing") is None


async def test_nobody_there_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(FileTargetUnavailableError):
        async with FtpTarget("ftp://me:pw@127.0.0.1:1/", timeout_seconds=2.0).open():
            pass
