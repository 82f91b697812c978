"""A cache in Redis that is kept in step: filled with what rows are projected to, or emptied.

Every write is one script on the server, which first compares token, epoch and place with those of
this sink's key ``<prefix>duly`` and moves the place with the data: what an older reader sends
changes nothing, what was applied is not applied again, so nothing late can bring back a removed
entry; and a server that came back empty, or with an older state, is found out.  Only what is too
much for one script goes in parts, the last of them with the place.  A second key, a
sorted set, names the entries by the epoch they are of, so that an emptied table and rows that
vanished unseen can be followed without looking through the server's other keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from duly.errors import (
    ConfigurationError,
    MissingExtraError,
    SinkLostError,
    SinkRefusedError,
    SinkUnavailableError,
    StaleLeaseError,
)
from duly.kernel import failpoints
from duly.kernel.durations import Duration, seconds
from duly.kernel.upserts import Clear, Operation, Put, fold, key_text, pieces
from duly.sink import Batch, Fed, Feed
from duly.sinks.tabular import as_json
from duly.wire.urls import redact

__all__ = ["RedisCache"]

CALL_SECONDS = 5.0
PIECE_ROWS = 1000
PIECE_BYTES = 2 * 1024 * 1024
SWEPT = 1000
_STALE, _LOST = -1, -2
# KEYS: state, index. ARGV: token, epoch, place as it is known. Gives nothing where all is well.
_GUARD = """
local had = redis.call('HMGET', KEYS[1], 'token', 'epoch', 'place')
if not had[1] then return -2 end
if had[1] ~= ARGV[1] or had[2] ~= ARGV[2] then return -1 end
if had[3] ~= ARGV[3] then return -2 end
"""
# ARGV: token, epoch, place wanted. A later epoch begins without a place.
_OPEN = """
local had = redis.call('HMGET', KEYS[1], 'token', 'epoch', 'place')
local place = ''
if had[1] then
  local epoch, wanted = tonumber(had[2]), tonumber(ARGV[2])
  if epoch > wanted then return false end
  if epoch == wanted then
    if tonumber(had[1]) > tonumber(ARGV[1]) then return false end
    place = had[3]
  end
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'epoch', ARGV[2], 'place', place)
return place
"""
# ARGV: ..., place reached, milliseconds to live, prefix, then for each entry: what, its id, parts.
_APPLY = (
    _GUARD
    + """
local at = 7
local function take() at = at + 1; return ARGV[at - 1] end
while at <= #ARGV do
  local what, id = take(), take()
  local name = ARGV[6] .. id
  if what == 'D' then
    redis.call('UNLINK', name)
    redis.call('ZREM', KEYS[2], id)
  elseif what == 'I' then
    redis.call('UNLINK', name)
  elseif what == 'C' then
    for _, one in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
      redis.call('UNLINK', ARGV[6] .. one)
    end
    redis.call('DEL', KEYS[2])
  else
    if what == 'J' then
      redis.call('SET', name, take())
    else
      if what == 'H' then redis.call('UNLINK', name) end
      if what == 'U' and redis.call('EXISTS', name) == 0 then return id end
      for _ = 1, tonumber(take()) do
        local field = take()
        redis.call('HSET', name, field, take())
      end
      for _ = 1, tonumber(take()) do redis.call('HDEL', name, take()) end
    end
    if ARGV[5] ~= '0' then redis.call('PEXPIRE', name, ARGV[5]) end
    redis.call('ZADD', KEYS[2], ARGV[2], id)
  end
end
redis.call('HSET', KEYS[1], 'place', ARGV[4])
return 0
"""
)
# ARGV: ..., highest epoch to remove, how many at most, prefix. Gives how many there were.
_SWEEP = (
    _GUARD
    + """
local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, ARGV[5])
for _, id in ipairs(ids) do
  redis.call('UNLINK', ARGV[6] .. id)
  redis.call('ZREM', KEYS[2], id)
end
return #ids
"""
)


class RedisCache:
    """Entries of a Redis server, one for each row, called prefix and key.

    url: ``redis://`` or ``rediss://``. prefix: of the names of entries; nothing else may begin with
    it. form: ``json``, one text; ``hash``, a field for each column, where a NULL is a field that is
    not there; ``invalidate``: whoever reads fills the cache, and a change removes the entry. ttl:
    how long an entry lives that nothing changes; for ever by default. Raises ConfigurationError.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        form: Literal["json", "hash", "invalidate"] = "json",
        ttl: Duration | None = None,
    ) -> None:
        if form not in ("json", "hash", "invalidate"):
            raise ConfigurationError("RedisCache: form is 'json', 'hash' or 'invalidate'")
        if not prefix:
            raise ConfigurationError("RedisCache: entries need a prefix of their own")
        self._url, self._prefix, self._form = url, prefix, form
        self._ttl_ms = 0 if ttl is None else max(1, round(seconds(ttl, "ttl") * 1000))
        self._keys = [f"{prefix}duly", f"{prefix}duly:ids"]
        self._client: Any = None
        self._scripts: dict[str, Callable[..., Any]] = {}
        self._feed: Feed | None = None
        self._place = ""

    @property
    def snapshots(self) -> bool:
        """As ``Sink``."""
        return self._form != "invalidate"

    @property
    def place(self) -> str:
        """As ``Sink``."""
        return f"{redact(self._url)} {self._prefix}*"

    # --- a sink -----------------------------------------------------------------------------------
    def look(self, name: str) -> Fed:
        """As ``Sink``; one prefix is fed by one stream, so its name plays no part."""
        with self._errors():
            epoch, place = self._connected().hmget(self._keys[0], "epoch", "place")
        return Fed() if epoch is None else Fed(int(epoch), place.decode())

    def open(self, feed: Feed) -> None:
        """As ``Sink``."""
        with self._errors():
            place = self._run(_OPEN, [feed.token, feed.epoch])
        if place is None:
            raise StaleLeaseError(f"{self.place} is fed by another reader")
        self._feed, self._place = feed, place.decode()

    def apply(self, batch: Batch) -> None:
        """As ``Sink``: exactly once, as far as the server keeps what it was given."""
        last: Sequence[Operation] = ()
        with self._errors():
            for piece in pieces(batch.operations, count=PIECE_ROWS, size_bytes=PIECE_BYTES):
                if last:
                    self._apply(last, self._place)
                last = fold(piece)
                if last and isinstance(last[0], Clear):
                    self._make_room()
            if batch.complete and self.snapshots:
                assert self._feed is not None, "open comes first"
                self._apply(last, self._place)
                self._sweep(f"({self._feed.epoch}")
                last = ()
            failpoints.hit(failpoints.SINK_WRITTEN)
            self._apply(last, batch.place)
        self._place = batch.place
        failpoints.hit(failpoints.SINK_APPLIED)

    def close(self) -> None:
        """As ``Sink``."""
        if self._client is not None:
            self._client.close()
            self._client, self._scripts = None, {}

    # --- details ----------------------------------------------------------------------------------
    def _apply(self, operations: Sequence[Operation], place: str) -> None:
        entries = [part for one in operations for part in self._entry(one)]
        self._guarded(_APPLY, [place, self._ttl_ms, self._prefix, *entries])

    def _entry(self, operation: Operation) -> Iterable[Any]:
        """What the script is told of one entry: what to do, its id, the parts of it."""
        if isinstance(operation, Clear):
            return ("C", "") if self.snapshots else ()
        id_ = key_text(operation.key)
        if not self.snapshots:
            return "I", id_
        if not isinstance(operation, Put):
            return "D", id_
        if self._form == "json":
            if not operation.whole:
                text = "an update came without all its values; use form='hash', or whole rows"
                raise SinkRefusedError(text, code="ABSENT_VALUE")
            return "J", id_, as_json(operation.row)
        known = operation.known.items()
        flat = [part for name, v in known if v is not None for part in (name, _text(v))]
        nulls = [name for name, v in known if v is None]
        what = "H" if operation.whole else "U"
        return what, id_, len(flat) // 2, *flat, len(nulls), *nulls

    def _make_room(self) -> None:
        """Before a clearing: what is too much for one script, or not in its index."""
        client = self._connected()
        if self.snapshots:
            if client.zcard(self._keys[1]) > SWEPT:
                self._sweep("+inf")
            return
        ours = {key.encode() for key in self._keys}
        pattern = "".join(f"\\{c}" if c in "*?[]\\^" else c for c in self._prefix) + "*"
        cursor = -1
        while cursor:
            cursor, names = client.scan(max(cursor, 0), match=pattern, count=SWEPT)
            if wanted := [name for name in names if name not in ours]:
                client.unlink(*wanted)

    def _sweep(self, highest: str) -> None:
        while self._guarded(_SWEEP, [highest, SWEPT, self._prefix]) == SWEPT:
            pass

    def _guarded(self, script: str, arguments: Sequence[Any]) -> Any:
        feed = self._feed
        assert feed is not None, "open comes first"
        answer = self._run(script, [feed.token, feed.epoch, self._place, *arguments])
        if answer == _STALE:
            raise StaleLeaseError(f"{self.place} is fed by another reader")
        if answer == _LOST:
            raise SinkLostError(f"{self.place} is not where it was left")
        if isinstance(answer, bytes):
            text = "an update came without all its values, and its entry is not there to keep them"
            raise SinkRefusedError(text, code="ABSENT_VALUE")
        return answer

    def _run(self, script: str, arguments: Sequence[Any]) -> Any:
        client = self._connected()
        made = self._scripts.get(script)
        if made is None:
            made = self._scripts[script] = client.register_script(script)
        return made(keys=self._keys, args=arguments)

    def _connected(self) -> Any:
        if self._client is None:
            try:
                import redis
            except ImportError as error:
                raise MissingExtraError("redis", "redis") from error
            try:
                self._client = redis.Redis.from_url(
                    self._url,
                    socket_timeout=CALL_SECONDS,
                    socket_connect_timeout=CALL_SECONDS,
                    decode_responses=False,
                    protocol=2,  # 3 asks servers for what most of them do not know
                    single_connection_client=True,
                )
            except ValueError as error:
                text = f"{redact(self._url)} is no URL of a Redis"
                raise ConfigurationError(text, code="SINK_URL") from error
        return self._client

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            from redis import exceptions
        except ImportError as error:
            raise MissingExtraError("redis", "redis") from error
        try:
            yield
        except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
            # What the answer would have been is asked of the place that is stored there.
            self.close()
            raise SinkUnavailableError(f"{self.place}: {type(error).__name__}") from error
        except exceptions.RedisError as error:
            word = str(error).partition(" ")[0][:40]
            if word in ("OOM", "READONLY", "MISCONF", "LOADING", "BUSY", "CLUSTERDOWN"):
                raise SinkUnavailableError(f"{self.place}: {word}") from error
            raise SinkRefusedError(f"{self.place}: {word}") from error


def _text(value: Any) -> Any:
    """A value as a field of a hash: text as it is, everything else as JSON writes it."""
    return value if isinstance(value, str | bytes) else as_json(value)
