from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from duly.brokers.activemq.entries import properties
from duly.brokers.activemq.xa import jvm
from duly.brokers.activemq.xa.settings import parse
from duly.errors import ConfigurationError, MissingExtraError
from duly.message import Message

PLACE = "useTopologyForLoadBalancing=false"
STORE = "trustStoreType=PEM&trustStorePath=/a%26b/ca.pem"


@pytest.mark.parametrize(
    ("url", "locator"),
    [
        ("activemq://mq", f"tcp://mq:61616?{PLACE}"),
        ("activemq://a:b@[::1]:7/shop", f"tcp://[::1]:7?{PLACE}"),
        ("activemq+tls://mq", f"tcp://mq:61616?{PLACE}&sslEnabled=true&verifyHost=true"),
        (
            "activemq+tls://mq?verify=verify_none",
            f"tcp://mq:61616?{PLACE}&sslEnabled=true&verifyHost=false&trustAll=true",
        ),
        (
            "activemq+tls://mq?cacertfile=/a%26b/ca.pem",
            f"tcp://mq:61616?{PLACE}&sslEnabled=true&verifyHost=true&{STORE}",
        ),
    ],
)
def test_what_the_client_is_told(url: str, locator: str) -> None:
    assert parse(url).locator == locator


def test_a_login_and_a_prefix() -> None:
    found = parse("activemq://anna:s3%2Fcr3t@mq/shop?jars=/opt/jars&connection_timeout=9")
    assert (found.user, found.password, found.prefix) == ("anna", "s3/cr3t", "shop")
    assert (found.jars, found.timeout_seconds) == (Path("/opt/jars"), 9)
    assert parse("activemq://mq").prefix == "duly"
    assert not any("cr3t" in text for text in (repr(found), found.shown, found.locator))


@pytest.mark.parametrize(
    "url",
    [
        "activemq://anna:s3cr3t@",
        "activemq://anna:s3cr3t@mq:port",
        "activemq://anna:s3cr3t@mq/a.b",
        "activemq://anna:s3cr3t@mq?folder=x",
        "activemq://anna:s3cr3t@mq?connection_timeout=0",
        "stomp://anna:s3cr3t@mq",
        "activemq://anna:s3cr3t@mq#part",
    ],
)
def test_a_bad_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="participant URL") as caught:
        parse(url)
    assert "s3cr3t" not in str(caught.value)


# --- what may be missing --------------------------------------------------------------------------
@pytest.fixture
def no_java_yet(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(jvm, "_started", None)
    return monkeypatch


def test_without_the_extra_the_error_names_it(no_java_yet: pytest.MonkeyPatch) -> None:
    no_java_yet.setitem(sys.modules, "jpype", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'duly\[xa\]'"):
        jvm.java(None)


def test_without_java_the_error_says_what_to_install(no_java_yet: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise ValueError("No JVM shared library file (libjvm.so) found.")

    fake = SimpleNamespace(isJVMStarted=lambda: False, startJVM=start)
    no_java_yet.setitem(sys.modules, "jpype", fake)
    no_java_yet.setitem(sys.modules, "jpype.config", SimpleNamespace())
    with pytest.raises(ConfigurationError, match="JAVA_HOME") as caught:
        jvm.java(None)
    assert caught.value.code == "XA_NO_JAVA"


def test_a_folder_without_jars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no jar in") as caught:
        jvm.java(tmp_path)
    assert caught.value.code == "XA_JARS"


def test_the_properties_are_those_that_a_frame_would_have() -> None:
    headers = {"expires": "1", "shop": "a:b"}
    found = properties(Message("i", "paid", "event", "t", "", b"{}", headers))
    assert (found["ce_id"], found["ce_type"]) == ("i", "paid")
    assert (found["duly-header-expires"], found["shop"]) == ("1", "a:b")
    assert "expires" not in found
    assert found["content-type"] == "application/json"
