"""The forms of a cache; what is stored is held to the public suite in ``tests/conformance``."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import redis

from duly.errors import ConfigurationError
from duly.kernel.upserts import Clear, Put, Remove
from duly.sink import Batch, Fed, Feed
from duly.sinks import RedisCache
from duly.testing.failpoints import FailpointError, Plan, armed


def test_what_is_no_cache_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="form is"):
        RedisCache("redis://host", prefix="a:", form="text")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="prefix"):
        RedisCache("redis://host", prefix="")
    with pytest.raises(ConfigurationError) as refused:
        RedisCache("http://host", prefix="a:").look("s")
    assert refused.value.code == "SINK_URL"


class TestOnAServer:
    @pytest.fixture
    def place(self, redis_url: str) -> tuple[str, str]:
        at = urlsplit(redis_url)
        return at._replace(query="").geturl(), at.query.removeprefix("prefix=") + "[x]*"

    def test_invalidating_removes_what_readers_have_put_there(self, place: tuple[str, str]) -> None:
        url, prefix = place
        client = redis.Redis.from_url(url, protocol=2)
        sink = RedisCache(url, prefix=prefix, form="invalidate")
        assert not sink.snapshots
        sink.open(Feed("s", 1, 1))
        client.mset({f"{prefix}{n}": "old" for n in range(4)})
        sink.apply(Batch([Put({"id": 0}, {}), Remove({"id": 1})], "0001", complete=True))
        assert client.mget([f"{prefix}{n}" for n in range(4)]) == [None, None, b"old", b"old"]
        sink.apply(Batch([Clear()], "0002"))
        assert client.mget([f"{prefix}{n}" for n in range(4)]) == [None] * 4
        assert sink.look("s") == Fed(1, "0002")

    def test_entries_live_as_long_as_they_are_told_to(self, place: tuple[str, str]) -> None:
        url, prefix = place
        client = redis.Redis.from_url(url, protocol=2)
        sink = RedisCache(url, prefix=prefix, ttl="1h")
        sink.open(Feed("s", 1, 1))
        sink.apply(Batch([Put({"id": 0}, {"n": 1})], "0001"))
        assert 0 < client.pttl(f"{prefix}0") <= 3_600_000
        assert client.ttl(f"{prefix}duly") == -1

    def test_entries_and_place_are_one_write(self, place: tuple[str, str]) -> None:
        url, prefix = place
        client = redis.Redis.from_url(url, protocol=2)
        sink = RedisCache(url, prefix=prefix)
        sink.open(Feed("s", 1, 1))
        sink.apply(Batch([Put({"id": 0}, {"n": 1})], "0001"))
        with (
            armed(Plan("sink.written_not_committed", action="raise")),
            pytest.raises(FailpointError),
        ):
            sink.apply(Batch([Put({"id": 0}, {"n": 2}), Clear(), Put({"id": 1}, {"n": 3})], "0002"))
        assert client.mget([f"{prefix}0", f"{prefix}1"]) == [b'{"n":1}', None]
        assert sink.look("s") == Fed(1, "0001")
        sink.apply(Batch([Put({"id": 0}, {"n": 2}), Clear(), Put({"id": 1}, {"n": 3})], "0002"))
        assert client.mget([f"{prefix}0", f"{prefix}1"]) == [None, b'{"n":3}']
        assert client.zrange(f"{prefix}duly:ids", 0, -1) == [b"1"]

    def test_what_is_too_much_for_one_write_goes_in_parts(
        self, place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, prefix = place
        monkeypatch.setattr("duly.sinks.redis.PIECE_ROWS", 2)
        monkeypatch.setattr("duly.sinks.redis.SWEPT", 2)
        client = redis.Redis.from_url(url, protocol=2)
        sink = RedisCache(url, prefix=prefix)
        sink.open(Feed("s", 1, 1))
        sink.apply(Batch([Put({"id": n}, {"n": n}) for n in range(5)], "0001"))
        assert client.mget([f"{prefix}{n}" for n in range(5)]) == [
            b'{"n":%d}' % n for n in range(5)
        ]
        sink.apply(Batch([Put({"id": 9}, {"n": 9}), Remove({"id": 0}), Clear()], "0002"))
        assert client.keys(f"{prefix.replace('[', '?').replace('*', '?')}*") == [
            f"{prefix}duly".encode()
        ]
        assert sink.look("s") == Fed(1, "0002")
