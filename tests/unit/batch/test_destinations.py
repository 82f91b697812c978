"""What can be declared, and what a declaration says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from duly.batch.delivery import Policy
from duly.batch.destinations import Ftp, Ftps, Local, Sftp
from duly.batch.send import SendStep
from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry


class Places:
    """Keeps what a target was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def file_target(self, url: str, **options: Any) -> Any:
        self.asked.append((url, options))
        return object()


class Job:
    def __init__(self) -> None:
        self.places = Places()


def test_a_declaration_becomes_a_step_with_its_target() -> None:
    job = Job()
    place = Sftp("sftp://me:pw@bank/in", known_hosts="hosts", key="id", verify="sha256")
    step = place.step(job)  # type: ignore[arg-type]
    assert isinstance(step, SendStep)
    assert step.name == "send"
    url, options = job.places.asked[0]
    assert url == "sftp://me:pw@bank/in"
    assert options == {
        "known_hosts": "hosts",
        "key": "id",
        "key_passphrase_env": "",
        "password_env": "",
        "ciphers": (),
        "timeout_seconds": 60.0,
    }


def test_every_kind_asks_for_what_its_adapter_takes() -> None:
    from duly.adapters import make_file_target

    for place in (
        Sftp("sftp://me@bank/in", known_hosts="hosts"),
        Ftps("ftps://me:pw@bank/in", implicit=True, timeout="5s"),
        Ftp("ftp://me@bank/in", password_env="PW"),
        Local("file:///srv/out"),
    ):
        job = Job()
        place.step(job)  # type: ignore[arg-type]
        url, options = job.places.asked[0]
        made = make_file_target(url, **options)
        assert made.place.partition("://")[0] == url.partition("://")[0]


def test_a_password_is_neither_shown_nor_part_of_the_definition() -> None:
    one = Ftps("ftps://me:secret-1@bank/in")
    other = Ftps("ftps://me:secret-2@bank/in")
    assert "secret" not in repr(one) + one.definition()
    assert one.definition() == other.definition()
    assert one.definition() != Ftps("ftps://me:secret-1@bank/out").definition()
    assert one.definition() != Ftps("ftps://me:secret-1@bank/in", marker=".ok").definition()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sftp("ftp://bank/in", known_hosts="x"),
        lambda: Ftp("ftps://bank/in"),
        lambda: Local("/srv/out"),
        lambda: Local("file:///out", verify="md5"),  # type: ignore[arg-type]
        lambda: Local("file:///out", if_exists="append"),  # type: ignore[arg-type]
        lambda: Local("file:///out", marker="done"),
        lambda: Local("file:///out", marker="./../x"),
        lambda: Local("file:///out", retry=Retry(on=(OSError,))),
    ],
)
def test_what_is_wrong_is_told_where_it_is_declared(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_sftp_without_known_hosts_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="known_hosts"):
        Sftp("sftp://bank/in")  # type: ignore[call-arg]


def test_the_policy_of_a_delivery() -> None:
    step = Local("file:///out", if_exists="replace", marker=".ok").step(Job())  # type: ignore[arg-type]
    assert step._policy == Policy(verify="tail", replace=True, marker=".ok")
