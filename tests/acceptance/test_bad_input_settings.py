"""Settings nobody should run with: all that is wrong is told at once, before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from duly import App, Event
from duly.errors import ConfigurationError, UnsafeSettingError

SECRET = "hunter2secret"


class Placed(Event, name="order.placed", topic="orders"):
    order_id: int


def refused(**settings: Any) -> str:
    """The text of the refusal."""
    with pytest.raises(ConfigurationError) as caught:
        App("shop", **settings).settings  # noqa: B018  # read at first use
    assert caught.value.code == "CONFIGURATION"
    return caught.value.detail


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    assert "the nearest is lease_ttl" in refused(leasettl="5s")


@pytest.mark.parametrize("value", [0, -1, "0", "-5", 1.5, True, "many", None.__class__, [], 10**20])
@pytest.mark.parametrize("name", ["payload_bytes_max", "batch_size", "workers", "relay_in_flight"])
def test_limits_are_whole_numbers_above_zero(name: str, value: Any) -> None:
    assert name in refused(**{name: value})


@pytest.mark.parametrize(
    "value", [0, -1, "0s", "-5s", "5", "5 weeks", float("inf"), float("nan"), "1e309s", True, {}]
)
@pytest.mark.parametrize("name", ["lease_ttl", "handler_timeout", "dedupe_window", "drain_timeout"])
def test_durations_have_a_unit_and_are_above_zero(name: str, value: Any) -> None:
    assert name in refused(**{name: value})


def test_everything_wrong_is_told_together() -> None:
    text = refused(workers=0, batch_size="x", nonsense=1)
    assert all(word in text for word in ("workers", "batch_size", "nonsense"))


@pytest.mark.parametrize(
    "settings",
    [
        {"lease_ttl": "2s", "renew_every": "1.5s"},
        {"send_timeout": "5s"},
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any]) -> None:
    assert "lease_ttl" in refused(**settings)


@pytest.mark.parametrize(
    "url", ["", "x", "shop.db", "sqlite:///a%00b", "sqlite:///a\nb", "x" * 3000]
)
def test_urls_that_are_none(url: str) -> None:
    assert "database" in refused(database=url)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"database": "sqlit:///shop.db"}, "did you mean sqlite://?"),
        ({"database": "sqlite:///:memory:"}, "cannot be shared"),
        ({"database": "sqlite://"}, "sqlite:///file.db"),
        ({"broker": "kafak://localhost"}, "no broker is known"),
        ({"broker": "embedded://host/x.db"}, "embedded:///file.db"),
    ],
)
def test_urls_of_nothing_we_know(settings: dict[str, Any], word: str) -> None:
    app = App("shop", **settings)
    with pytest.raises(ConfigurationError) as caught:
        app.make_broker() if "broker" in settings else app.database
    assert word in caught.value.detail


def test_the_environment_is_checked_like_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DULY_WORKERS", "-3")
    monkeypatch.setenv("DULY_NONSENSE", "1")
    text = refused()
    assert "DULY_WORKERS" in text
    assert "DULY_NONSENSE" in text


FILES = {
    "unknown key": b"worker = 3\n",
    "wrong type": b"workers = []\n",
    "duplicate key": b"workers = 1\nworkers = 2\n",
    "no TOML": b"workers: 3\n",
    "no UTF-8": b"workers = 3 # \xff\n",
    "allow_unsafe belongs into the code": b'[allow_unsafe]\nX = "y"\n',
    "10 MB": b"#" * 10_000_000,
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("duly.toml").write_bytes(FILES[name])
    assert refused()


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfworkers = 3\n", b"workers = 3\r\n"])
def test_a_byte_order_mark_and_crlf_are_no_matter(
    text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("duly.toml").write_bytes(text)
    assert App("shop").settings.workers == 3


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://bob:{SECRET}@[::1/shop",
        f"postgresql://bob:{SECRET}@host/shop with space",
        f"postgres-typo://bob:{SECRET}@host/shop",
    ],
)
def test_no_refusal_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App("shop", database=url).database  # noqa: B018  # read at first use
    assert SECRET not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None or SECRET not in repr(caught.value.__cause__)


def test_settings_show_no_password() -> None:
    app = App("shop", database=f"postgresql://bob:{SECRET}@host/shop?password={SECRET}")
    assert SECRET not in repr(app.settings)
    assert SECRET not in str(app.settings)


async def test_unsafe_settings_are_refused_together_and_accepted_by_name(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'shop.db'}"
    with pytest.raises(UnsafeSettingError) as caught:
        async with App("shop", database=database, broker="embedded:///:memory:").running():
            raise AssertionError("it has started")
    assert caught.value.code == "UNSAFE_SETTING"
    assert "EMBEDDED_MEMORY" in caught.value.detail
    accepted = App(
        "shop",
        database=database,
        broker="embedded:///:memory:",
        allow_unsafe={"EMBEDDED_MEMORY": "a test"},
    )
    accepted.on(Placed, group="sales")(lambda event: None)
    await accepted.run_once(timeout="10s")
    accepted.close()
