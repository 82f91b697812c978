"""An index of OpenSearch or Elasticsearch, kept in step over its bulk API.

A document ``<stream>`` in the index ``duly_sinks`` says how far the index is: the place, a number,
and the index's own identity; it is written only over the state that was read.  Each request has the
next number, a new reader begins beyond all that an older one can have used, and every document is
written under the number as its external version: what comes late changes nothing that is newer.
The invariants: the place moves after all that lies before it was confirmed item by item; what is
applied again leaves the index as it was; a document that is refused stops the stream, by its id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote

from duly.errors import (
    ConfigurationError,
    SinkLostError,
    SinkRefusedError,
    SinkUnavailableError,
    StaleLeaseError,
)
from duly.kernel import failpoints
from duly.kernel.upserts import Clear, Operation, Put, fold, key_text, pieces
from duly.sink import Batch, Fed, Feed
from duly.sinks.http import HttpPeer
from duly.sinks.tabular import MARK, as_json

__all__ = ["STATE_INDEX", "SearchIndex"]

STATE_INDEX = "duly_sinks"
PIECE_ROWS = 1000
PIECE_BYTES = 4 * 1024 * 1024
_BEYOND = 1_000_000  # requests of one apply, at most
_BUSY = (429, 500, 502, 503, 504)
_NEWER, _MISSING = 409, 404
_NOWHERE = (-1, -1)


class _State(NamedTuple):
    """The state as it was read. number: of the last request; since: the first one of this epoch;
    at: what the server wants named to write the state again.
    """

    token: int
    epoch: int
    place: str
    number: int
    since: int
    uuid: str
    at: tuple[int, int]


class SearchIndex:
    """An index of a search engine, one document for each row, its id the row's key.

    url: ``http://`` or ``https://``, with user and password where needed. index: its name.
    mappings: what a new index is made with, as the engine has it. ca_file: certificates to trust
    besides the system's. A document gets a field ``duly_mark``. Raises ConfigurationError.
    """

    snapshots = True

    def __init__(
        self,
        url: str,
        *,
        index: str,
        mappings: Mapping[str, Any] | None = None,
        ca_file: str | None = None,
    ) -> None:
        self._http = HttpPeer(url, ca_file=ca_file)
        self._index, self._mappings = index, dict(mappings or {})
        self._path = f"/{quote(index, safe='')}"
        self._feed: Feed | None = None
        self._state: _State | None = None

    @property
    def place(self) -> str:
        """As ``Sink``."""
        return f"{self._http.shown} {self._index}"

    # --- a sink -----------------------------------------------------------------------------------
    def look(self, name: str) -> Fed:
        """As ``Sink``."""
        state = self._read(name)
        if state is None or self._uuid() != state.uuid:
            return Fed()
        return Fed(state.epoch, state.place)

    def open(self, feed: Feed) -> None:
        """As ``Sink``."""
        uuid = self._uuid() or self._make()
        state = self._read(feed.name)
        if state is not None and (state.epoch, state.token) > (feed.epoch, feed.token):
            raise StaleLeaseError(f"{self.place} is fed by another reader")
        had = state or _State(0, 0, "", 0, 0, uuid, _NOWHERE)
        number = had.number + _BEYOND
        wanted = had._replace(token=feed.token, number=number)
        if had.epoch != feed.epoch or had.uuid != uuid:
            wanted = wanted._replace(epoch=feed.epoch, place="", since=number, uuid=uuid)
        self._feed = feed
        self._state = self._write(wanted, feed)

    def apply(self, batch: Batch) -> None:
        """As ``Sink``: a part that was applied before is applied again."""
        for piece in pieces(batch.operations, count=PIECE_ROWS, size_bytes=PIECE_BYTES):
            operations = fold(piece)
            if operations and isinstance(operations[0], Clear):
                self._delete_up_to(self._next())
                operations = operations[1:]
            if operations:
                self._bulk(operations, self._next())
        state, feed = self._at()
        if batch.complete:
            self._delete_up_to(state.since - 1)
        failpoints.hit(failpoints.SINK_WRITTEN)
        self._state = self._write(state._replace(place=batch.place), feed)
        failpoints.hit(failpoints.SINK_APPLIED)

    def close(self) -> None:
        """As ``Sink``."""
        self._http.close()

    # --- documents --------------------------------------------------------------------------------
    def _next(self) -> int:
        """The number of the next request. Told to nobody until the place moves: a new reader
        begins beyond what this one can have used.
        """
        state, _ = self._at()
        self._state = state._replace(number=state.number + 1)
        return state.number + 1

    def _bulk(self, operations: Iterable[Operation], number: int) -> None:
        lines: list[str] = []
        for operation in operations:
            if isinstance(operation, Clear):
                raise TypeError("a clearing is no document")
            where: dict[str, Any] = {"_index": self._index, "_id": key_text(operation.key)}
            where |= {"version": number, "version_type": "external_gte"}
            if isinstance(operation, Put):
                if not operation.whole:
                    text = "an update came without all its values; the source has to log whole rows"
                    raise SinkRefusedError(text, code="ABSENT_VALUE")
                lines += [json.dumps({"index": where}), as_json({**operation.row, MARK: number})]
            else:
                lines.append(json.dumps({"delete": where}))
        body = "\n".join(lines) + "\n"
        status, answer = self._http.call("POST", "/_bulk", body, kind="application/x-ndjson")
        if status != 200:
            self._fail(status, "_bulk", answer)
        self._look_at_items(answer["items"])

    def _look_at_items(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Raise for the worst: refused for good, then refused by a newer one, then busy."""
        busy = newer = 0
        for item in items:
            ((verb, told),) = item.items()
            status = told["status"]
            if status < 300 or (verb == "delete" and status == _MISSING):
                continue
            if status == _NEWER:
                newer += 1
            elif status in _BUSY:
                busy += 1
            else:
                reason = told.get("error", {}).get("type", "refused")
                text = f"{self.place}: document {told.get('_id', '')!r:.100}: {reason} ({status})"
                raise SinkRefusedError(text)
        if newer:
            self._refuse_newer()
        if busy:
            raise SinkUnavailableError(f"{self.place}: {busy} documents were put off (busy)")

    def _refuse_newer(self) -> NoReturn:
        _, feed = self._at()
        now = self._read(feed.name)
        if now is None or (now.epoch, now.token) != (feed.epoch, feed.token):
            raise StaleLeaseError(f"{self.place} is fed by another reader")
        text = f"{self.place}: documents were written under a higher version by somebody else"
        raise SinkRefusedError(text, code="SINK_FOREIGN")

    def _delete_up_to(self, number: int) -> None:
        """Remove what no later request has written; what was written is made visible to it first.
        A document that is written meanwhile is left, by its own version.
        """
        self._asked("POST", f"{self._path}/_refresh")
        path = f"{self._path}/_delete_by_query?conflicts=proceed&refresh=true"
        query = {"bool": {"must_not": {"range": {MARK: {"gt": number}}}}}
        answer = self._asked("POST", path, {"query": query})
        if answer.get("timed_out") or answer.get("failures"):
            raise SinkUnavailableError(f"{self.place}: not all could be removed")

    # --- the state --------------------------------------------------------------------------------
    def _at(self) -> tuple[_State, Feed]:
        assert self._state is not None, "open comes first"
        assert self._feed is not None, "open comes first"
        return self._state, self._feed

    def _uuid(self) -> str:
        """The identity of the index; empty where there is none."""
        status, answer = self._http.call("GET", self._path)
        if status == _MISSING:
            return ""
        if status != 200:
            self._fail(status, self._index, answer)
        (told,) = answer.values()  # under its own name, which an alias hides
        return str(told["settings"]["index"]["uuid"])

    def _make(self) -> str:
        self._asked("PUT", self._path, {"mappings": self._mappings})
        return self._uuid()

    def _state_path(self, name: str) -> str:
        return f"/{STATE_INDEX}/_doc/{quote(name, safe='')}"

    def _read(self, name: str) -> _State | None:
        status, answer = self._http.call("GET", self._state_path(name))
        if status == _MISSING:
            return None
        if status != 200:
            self._fail(status, STATE_INDEX, answer)
        told = answer["_source"]
        at = (answer["_seq_no"], answer["_primary_term"])
        return _State(**told, at=at)

    def _write(self, state: _State, feed: Feed) -> _State:
        """Write the state, where it is still as it was read."""
        seq_no, term = state.at
        once = "op_type=create" if seq_no < 0 else f"if_seq_no={seq_no}&if_primary_term={term}"
        body = {name: value for name, value in state._asdict().items() if name != "at"}
        path = f"{self._state_path(feed.name)}?{once}"
        status, answer = self._http.call("PUT", path, json.dumps(body))
        if status == _NEWER:
            self._refuse_moved(feed)
        if status not in (200, 201):
            self._fail(status, STATE_INDEX, answer)
        return state._replace(at=(answer["_seq_no"], answer["_primary_term"]))

    def _refuse_moved(self, feed: Feed) -> NoReturn:
        now = self._read(feed.name)
        if now is not None and (now.epoch, now.token) != (feed.epoch, feed.token):
            raise StaleLeaseError(f"{self.place} is fed by another reader")
        raise SinkLostError(f"{self.place} is not where it was left")

    def _asked(self, verb: str, path: str, body: Any = None) -> Any:
        text = None if body is None else json.dumps(body)
        status, answer = self._http.call(verb, path, text)
        if status not in (200, 201):
            self._fail(status, path, answer)
        return answer

    def _fail(self, status: int, what: str, answer: Any) -> NoReturn:
        error = answer.get("error") if isinstance(answer, dict) else None
        reason = error.get("type", "") if isinstance(error, dict) else str(error or "")[:100]
        text = f"{self.place}: {what}: {reason or 'no reason given'} ({status})"
        if status in _BUSY:
            raise SinkUnavailableError(text)
        if status in (401, 403):
            raise ConfigurationError(text, code="SINK_DENIED")
        raise SinkRefusedError(text)
