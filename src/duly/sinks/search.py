"""An index of OpenSearch or Elasticsearch, kept in step over its bulk API.

A document ``<index>:<stream>`` in the index ``duly_sinks`` says how far an index is: the place, a
number, and the index's own identity; it is written only over the state that was read.  Each request
has the next number, a new reader begins beyond all that an older one can have used, and every
document is written under the number as its external version: what comes late changes nothing that
is newer.  A server soon forgets what was removed, and a clearing has no version: the state is asked
before documents are sent or cleared away.
The invariants: the place moves after all that lies before it was confirmed item by item, on the
index that was opened; what is applied again leaves the index as it was; a document that is refused
stops the stream, by its id.
"""

from __future__ import annotations

import json
import re
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
ID_BYTES_MAX = 512
_BEYOND = 1_000_000  # requests of one apply, at most
_BUSY = (429, 500, 502, 503, 504)
_NEWER, _MISSING, _EXISTS = 409, 404, "resource_already_exists_exception"
_GONE = "index_not_found_exception"
_NOT_NOW = ("cluster_block_exception", "index_closed_exception")  # until somebody opens it again
_FIELD = re.compile(
    r"(?:failed to parse field|mapping set to strict, dynamic introduction of) "
    r"(\[.{1,100}?\](?: of type \[\w{1,40}\])?)"
)
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
    besides the system's. A document gets a field ``duly_mark``, which is mapped as a ``long``.
    Raises ConfigurationError.
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
        """As ``Sink``; an index whose marks cannot be asked for was never fed."""
        state = self._read(name)
        if state is None or self._found() != (state.uuid, "long"):
            return Fed()
        return Fed(state.epoch, state.place)

    def open(self, feed: Feed) -> None:
        """As ``Sink``."""
        uuid, mapped = self._found()
        if not uuid:
            uuid = self._make()
        elif mapped != "long":  # where new fields are not mapped by themselves, every mark is below
            self._asked("PUT", f"{self._path}/_mapping", {"properties": {MARK: {"type": "long"}}})
        state = self._read(feed.name)
        if state is None:
            self._make_state_index()
        elif (state.epoch, state.token) > (feed.epoch, feed.token):
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
        self._refuse_other_index()  # documents would make an index anew that was dropped
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
        self._refuse_other_index()
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
            lines += self._lines(operation, number)
        if not lines:
            return
        self._refuse_newer_reader(self._at()[1])
        body = "\n".join(lines) + "\n"
        status, answer = self._http.call("POST", "/_bulk", body, kind="application/x-ndjson")
        if status != 200:
            self._fail(status, "_bulk", answer)
        self._look_at_items(answer["items"])

    def _lines(self, operation: Operation, number: int) -> list[str]:
        """What a bulk request says of one document."""
        if isinstance(operation, Clear):
            raise TypeError("a clearing is no document")
        id_ = key_text(operation.key)
        where: dict[str, Any] = {"_index": self._index, "_id": id_}
        where |= {"version": number, "version_type": "external_gte"}
        size = len(id_.encode())
        fits = 0 < size <= ID_BYTES_MAX
        if not isinstance(operation, Put):
            return [json.dumps({"delete": where})] if fits else []  # it cannot be there
        if not fits:
            text = f"document {id_!r:.100}: an id has 1 to {ID_BYTES_MAX} bytes, this has {size}"
            raise SinkRefusedError(f"{self.place}: {text}")
        if not operation.whole:
            text = "an update came without all its values; the source has to log whole rows"
            raise SinkRefusedError(text, code="ABSENT_VALUE")
        return [json.dumps({"index": where}), as_json({**operation.row, MARK: number})]

    def _look_at_items(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Raise for the worst: refused for good, then refused by a newer one, then put off."""
        newer, put_off = 0, []
        for item in items:
            ((verb, told),) = item.items()
            status, reason = told["status"], _reason(told)
            if status < 300 or (verb == "delete" and status == _MISSING and not reason):
                continue
            if status == _NEWER:
                newer += 1
            elif status in _BUSY or reason in _NOT_NOW:
                put_off.append(reason or status)
            else:
                self._refuse(told, reason or "refused")
        if newer:
            self._refuse_newer_reader(self._at()[1])
            text = f"{self.place}: documents were written under a higher version by somebody else"
            raise SinkRefusedError(text, code="SINK_FOREIGN")
        if put_off:
            text = f"{len(put_off)} documents were put off ({put_off[0]})"
            raise SinkUnavailableError(f"{self.place}: {text}")

    def _refuse(self, told: Mapping[str, Any], reason: str) -> NoReturn:
        """One document. What the engine says of its values is not repeated."""
        status = told["status"]
        if reason == _GONE:
            raise self._lost()
        text = f"{self.place}: document {told.get('_id', '')!r:.100}: {reason} ({status})"
        if status in (401, 403):
            raise ConfigurationError(text, code="SINK_DENIED")
        field = _FIELD.match(str(told.get("error", {}).get("reason", "")))
        raise SinkRefusedError(text + (f", field {field[1]}" if field else ""))

    def _delete_up_to(self, number: int) -> None:
        """Remove what no later request has written; what was written is made visible to it first.
        A document that is written meanwhile is left, by its own version.
        """
        self._refuse_newer_reader(self._at()[1])
        refreshed = self._asked("POST", f"{self._path}/_refresh")
        if refreshed["_shards"]["failed"]:
            raise SinkUnavailableError(f"{self.place}: not all of it can be seen")
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
        return self._told(f"{self._path}/_settings/index.uuid")[0]

    def _found(self) -> tuple[str, str]:
        """The identity of the index, and what the mark is mapped as; empty where there is none."""
        return self._told(self._path)

    def _told(self, path: str) -> tuple[str, str]:
        status, answer = self._http.call("GET", path)
        if status == _MISSING:
            return "", ""
        if status != 200:
            self._fail(status, self._index, answer)
        if len(answer) != 1:
            text = f"{self.place} is {len(answer)} indices; a copy is one"
            raise ConfigurationError(text, code="SINK_URL")
        (told,) = answer.values()  # under its own name, which an alias hides
        marks = told.get("mappings", {}).get("properties", {}).get(MARK, {})
        return str(told["settings"]["index"]["uuid"]), str(marks.get("type", ""))

    def _make(self) -> str:
        properties = {**self._mappings.get("properties", {}), MARK: {"type": "long"}}
        mappings = {**self._mappings, "properties": properties}
        self._asked("PUT", self._path, {"mappings": mappings})
        return self._uuid()

    def _make_state_index(self) -> None:
        """It is kept, and nothing in it is searched for; a server may make none by itself."""
        body = json.dumps({"mappings": {"dynamic": False}})
        status, answer = self._http.call("PUT", f"/{STATE_INDEX}", body)
        if status != 200 and _reason(answer) != _EXISTS:
            self._fail(status, STATE_INDEX, answer)

    def _state_path(self, name: str) -> str:
        return f"/{STATE_INDEX}/_doc/{quote(f'{self._index}:{name}', safe='')}"

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
            self._refuse_newer_reader(feed)
            raise self._lost()
        if status not in (200, 201):
            self._fail(status, STATE_INDEX, answer)
        return state._replace(at=(answer["_seq_no"], answer["_primary_term"]))

    def _refuse_newer_reader(self, feed: Feed) -> None:
        now = self._read(feed.name)
        if now is None:
            raise self._lost()
        if (now.epoch, now.token) != (feed.epoch, feed.token):
            raise StaleLeaseError(f"{self.place} is fed by another reader")

    def _refuse_other_index(self) -> None:
        if self._uuid() != self._at()[0].uuid:
            raise self._lost()

    def _lost(self) -> SinkLostError:
        return SinkLostError(f"{self.place} is not where it was left")

    def _asked(self, verb: str, path: str, body: Any = None) -> Any:
        text = None if body is None else json.dumps(body)
        status, answer = self._http.call(verb, path, text)
        if status not in (200, 201):
            self._fail(status, path, answer)
        return answer

    def _fail(self, status: int, what: str, answer: Any) -> NoReturn:
        reason = _reason(answer)
        text = f"{self.place}: {what}: {reason or 'no reason given'} ({status})"
        if status in _BUSY or reason in _NOT_NOW:
            raise SinkUnavailableError(text)
        if reason == _GONE:
            raise SinkLostError(text)
        if status in (401, 403):
            raise ConfigurationError(text, code="SINK_DENIED")
        raise SinkRefusedError(text)


def _reason(answer: Any) -> str:
    """The kind of error that an answer, or its first failure, tells of; empty where none."""
    told = answer if isinstance(answer, dict) else {}
    error = told.get("error")
    if error is None and told.get("failures"):
        error = told["failures"][0].get("cause")
    return str(error.get("type", "")) if isinstance(error, dict) else str(error or "")[:100]
