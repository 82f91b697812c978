from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from duly.config import Settings, keys, load
from duly.errors import ConfigurationError

CANARY = "s3cr3tc4n4ry"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_file(folder, content: str | bytes) -> Settings:
    path = folder / "some.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load(environ={}, path=path)


def test_the_defaults():
    settings = load(environ={})
    assert settings == Settings()
    assert settings.database == "sqlite:///duly.db"
    assert settings.broker == "embedded:///duly-broker.db"
    assert (settings.lease_ttl, settings.renew_every, settings.send_timeout) == (5.0, 1.5, 3.0)
    assert settings.dedupe_window == 7 * 86_400
    assert settings.listen_url is None
    assert settings.allow_unsafe == {}


def test_the_table_describes_every_setting_and_its_defaults_are_valid():
    table = keys()
    assert [k.name for k in table] == [f.name for f in dataclasses.fields(Settings)]
    assert all(k.meaning and k.kind for k in table)
    written = {k.name: k.default for k in table if k.default is not None}
    assert load(written, environ={}) == Settings()


def test_arguments_before_environment_before_file_before_defaults(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('workers = 1\nbatch_size = 1\npoll_every = "2s"\nkeep_sent = true\n')
    settings = load(
        {"workers": 3, "batch_size": None},
        environ={"DULY_WORKERS": "2", "DULY_BATCH_SIZE": "2", "PATH": "/bin"},
        path=path,
    )
    assert (settings.workers, settings.batch_size, settings.poll_every) == (3, 2, 2.0)
    assert settings.keep_sent is True


def test_the_file_in_the_folder_is_found_and_a_named_one_must_exist(tmp_path):
    (tmp_path / "duly.toml").write_text("workers = 9\n")
    assert load(environ={}).workers == 9
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(environ={}, path=tmp_path / "missing.toml")


def test_the_process_environment_is_read_by_default(monkeypatch):
    monkeypatch.setenv("DULY_WORKERS", "7")
    assert load().workers == 7


def test_every_way_of_writing_a_value():
    assert load({"poll_every": timedelta(seconds=2)}, environ={}).poll_every == 2
    assert load({"poll_every": 0.25}, environ={}).poll_every == 0.25
    assert load({"table_prefix": "shop_"}, environ={}).table_prefix == "shop_"
    assert load({"listen_url": "postgresql://h/x"}, environ={}).listen_url == "postgresql://h/x"
    assert load(environ={"DULY_LISTEN_URL": ""}).listen_url is None
    for text, value in (("TRUE", True), ("1", True), ("off", False), ("No", False)):
        assert load(environ={"DULY_KEEP_SENT": text}).keep_sent is value


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("databse", "database"), ("worker", "workers"), ("lease-ttl", "lease_ttl")],
)
def test_an_unknown_key_names_the_nearest(tmp_path, written, nearest):
    with pytest.raises(ConfigurationError, match=f"{written} .*nearest is {nearest}"):
        load({written: "x"}, environ={})
    with pytest.raises(ConfigurationError, match=f"nearest is {nearest}"):
        from_file(tmp_path, f'"{written}" = 1')
    with pytest.raises(ConfigurationError, match=f"DULY_{written.upper()} .*is {nearest}"):
        load(environ={f"DULY_{written.upper()}": "x"})


def test_keys_are_lower_case():
    with pytest.raises(ConfigurationError, match=r"argument DATABASE .*nearest is database"):
        load({"DATABASE": "sqlite:///x.db"}, environ={})


def test_a_key_nothing_like_any_other_is_unknown_too(tmp_path):
    with pytest.raises(ConfigurationError, match="not a setting"):
        from_file(tmp_path, "[tool.duly]\nworkers = 1\n")
    with pytest.raises(ConfigurationError, match="not a setting") as caught:
        load({"\x1b[31m" + "x" * 10_000: 1}, environ={})
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)


def test_the_variables_of_the_test_servers_are_no_settings():
    assert load(environ={"DULY_TEST_POSTGRES": "postgresql://x/y"}) == Settings()


BAD = {
    "database": ["", "duly.db", 5, "sqlite", "x" * 3_000, "pg://a b", "pg://a\nb", "pg://%00", "pg://[::1"],
    "broker": [True, [], "embedded:/x"],
    "listen_url": ["x", 5],
    "table_prefix": ["", "Duly_", "a;drop table x;--", "duly_\n", "x" * 42, 5],
    "workers": [0, -1, 1.5, True, "four", "", "-1", "1e3", "٣", 10**30, "9" * 5_000, float("inf")],
    "payload_bytes_max": [0, -5, 10**9],
    "batch_size": [0, 10_001],
    "relay_in_flight": [0, 65],
    "lease_ttl": ["5", 0, -1, "0s", float("nan"), float("inf"), 1e309, True, "5 parsecs", ""],
    "poll_every": ["-1s", [], "20y"],
    "keep_sent": ["maybe", 1, ""],
    "allow_unsafe": [True, "yes", {"CODE": ""}, {"CODE": "  "}, {5: "x"}, {"CODE": None}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD.items() for value in values],
    ids=lambda v: ascii(v)[:20],
)
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"argument {name}") as caught:
        load({name: value}, environ={})
    assert len(str(caught.value)) < 500


def test_everything_wrong_is_reported_together(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("workers = 0\ncolour = 1\n")
    with pytest.raises(ConfigurationError) as caught:
        load({"poll_every": "x"}, environ={"DULY_BATCH_SIZE": "0"}, path=path)
    for part in (
        "argument poll_every",
        "variable DULY_BATCH_SIZE",
        "workers in the file",
        "colour in the file",
    ):
        assert part in str(caught.value)


def test_a_wrong_value_counts_even_where_another_source_wins():
    with pytest.raises(ConfigurationError, match="DULY_WORKERS"):
        load({"workers": 3}, environ={"DULY_WORKERS": "many"})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"lease_ttl": "3s"}, "renew_every is 1.5 s"),
        ({"send_timeout": "5s"}, "send_timeout must be shorter"),
        ({"lease_ttl": "2s"}, "send_timeout must be shorter"),
    ],
)
def test_settings_that_contradict_each_other(given, match):
    with pytest.raises(ConfigurationError, match=match):
        load(given, environ={})


def test_a_short_lease_can_be_had():
    given = {"lease_ttl": "0.5s", "renew_every": "150ms", "send_timeout": "300ms"}
    assert load(given, environ={}).lease_ttl == 0.5


def test_unsafe_settings_are_accepted_in_code_only(tmp_path):
    reasons = {"FSYNC_OFF": "throw-away data"}
    assert load({"allow_unsafe": reasons}, environ={}).allow_unsafe == reasons
    with pytest.raises(ConfigurationError, match="only stand in the code"):
        load(environ={"DULY_ALLOW_UNSAFE": "FSYNC_OFF"})
    with pytest.raises(ConfigurationError, match="only stand in the code"):
        from_file(tmp_path, '[allow_unsafe]\nFSYNC_OFF = "x"\n')


# --- the file -------------------------------------------------------------------------------------
def test_bom_and_crlf_are_fine(tmp_path):
    assert from_file(tmp_path, b"\xef\xbb\xbfworkers = 2\r\n# c\r\nbatch_size = 3\r\n").workers == 2


def test_an_empty_file_is_fine(tmp_path):
    assert from_file(tmp_path, "") == Settings()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("workers = 1\nworkers = 2\n", "is not TOML"),
        ("workers", "is not TOML"),
        ("workers = " + "9" * 10_000, "is not TOML"),
        ("a = " + "[" * 50_000 + "]" * 50_000, "is not TOML"),
        (b"workers = 1 # \xff\n", r"not UTF-8 \(byte 14\)"),
        ("x" * 10_000_000, "larger than"),
        ("#" * 1_000_001, "larger than"),
        ("\0", "is not TOML"),
    ],
    ids=range(8),
)
def test_broken_files(tmp_path, content, match):
    with pytest.raises(ConfigurationError, match=match) as caught:
        from_file(tmp_path, content)
    assert len(str(caught.value)) < 600


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(environ={}, path=tmp_path)


# --- secrets --------------------------------------------------------------------------------------
SECRET_URLS = [
    f"postgresql://u:{CANARY}@db/x",
    f"postgresql://{CANARY}@db/x",
    f"postgresql://u:p@ss/{CANARY}?#@db/x",
    f"postgresql://db/x?password={CANARY}&sslmode=require",
    f"postgresql://db/x?p%61ssword={CANARY}",
    f"amqps://u:{CANARY}%40@[::1]:5671/v",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_secret_is_shown(url):
    settings = load({"database": url, "broker": url, "listen_url": url}, environ={})
    assert settings.database == url
    assert CANARY not in repr(settings)
    assert CANARY not in f"{settings}"


@pytest.mark.parametrize(
    "url",
    [
        f"pg://u:{CANARY}@[db",
        f"pg://u:{CANARY} @db",
        f"pg://u:{CANARY}@d\u2100b/x",
        f"u:{CANARY}@db",
    ],
)
def test_no_secret_is_in_an_error_or_its_causes(url):
    with pytest.raises(ConfigurationError) as caught:
        load({"database": url}, environ={})
    error: BaseException | None = caught.value
    while error:
        assert CANARY not in f"{error}{error!r}"
        error = error.__cause__ or error.__context__


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().workers = 5  # type: ignore[misc]
