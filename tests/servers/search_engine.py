"""A search engine in memory, as far as a sink asks one: what OpenSearch and Elasticsearch document.

Documents with external versions, deletions that leave their version behind, a view that queries see
after a refresh only, writes conditional on sequence numbers, bulk requests whose items fail one by
one.  A field that is mapped as a number refuses text. It stands in where a real server cannot be
asked to fail, and a test holds its answers to those of one. What it does not know it refuses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

Answer = tuple[int, Any]


@dataclass
class Document:
    """source: None of one that was deleted, and whose version is still known."""

    source: dict[str, Any] | None
    version: int
    seq_no: int


@dataclass
class Index:
    mappings: dict[str, Any]
    uuid: str = field(default_factory=lambda: uuid4().hex)
    documents: dict[str, Document] = field(default_factory=dict)
    seen: dict[str, Document] = field(default_factory=dict)  # by queries
    seq_no: int = -1


class SearchEngine:
    """failing: what becomes of the next items of bulk requests; asked: every request."""

    def __init__(self) -> None:
        self.indices: dict[str, Index] = {}
        self.failing: list[tuple[int, str]] = []
        self.aliases: dict[str, list[str]] = {}
        self.unseen = 0  # shards that a refresh does not reach
        self.cut = 0  # so many requests are done, and the connection is closed without an answer
        self.down = 0  # so many requests are answered by a proxy that has no server behind it
        self.asked: list[str] = []
        self.authorization: set[str | None] = set()
        self._lock = threading.Lock()

    def documents(self, index: str) -> dict[str, dict[str, Any]]:
        """What an index holds, by id."""
        found = self.indices[index].documents if index in self.indices else {}
        return {id_: one.source for id_, one in found.items() if one.source is not None}

    def clear(self) -> None:
        with self._lock:
            self.indices.clear()

    # --- requests ---------------------------------------------------------------------------------
    def answer(self, verb: str, target: str, body: bytes) -> Answer:
        at = urlsplit(target)
        parts = [unquote(part) for part in at.path.strip("/").split("/")]
        options = dict(parse_qsl(at.query))
        with self._lock:
            self.asked.append(f"{verb} {at.path}")
            if self.down:
                self.down -= 1
                return 503, None
            if parts == ["_bulk"] and verb == "POST":
                return self._bulk(body)
            if len(parts) == 1:
                return self._index(verb, parts[0], body)
            if parts[1] == "_doc" and len(parts) == 3:
                return self._document(verb, parts[0], parts[2], body=body, options=options)
            if parts[1] == "_settings":
                return self._index(verb, parts[0], body)
            return self._query(parts[0], parts[1], body, options)

    def _index(self, verb: str, name: str, body: bytes) -> Answer:
        if verb == "PUT":
            if name in self.indices:
                return _error(400, "resource_already_exists_exception")
            self.indices[name] = Index(json.loads(body)["mappings"])
            return 200, {"acknowledged": True}
        if name not in self.indices:
            return _error(404, "index_not_found_exception")
        known = self.indices[name]
        told = {"mappings": known.mappings, "settings": {"index": {"uuid": known.uuid}}}
        return 200, dict.fromkeys(self.aliases.get(name, [name]), told)

    def _document(
        self, verb: str, index: str, id_: str, *, body: bytes, options: dict[str, str]
    ) -> Answer:
        if verb == "GET":
            found = self.indices[index].documents.get(id_) if index in self.indices else None
            if found is None or found.source is None:
                return 404, {"found": False}
            told = {"_seq_no": found.seq_no, "_primary_term": 1, "_source": found.source}
            return 200, {"found": True, **told}
        place = self.indices.setdefault(index, Index({}))
        known = place.documents.get(id_)
        there = known is not None and known.source is not None
        wanted = options.get("if_seq_no")
        if (options.get("op_type") == "create" and there) or (
            wanted is not None and (not there or known is None or known.seq_no != int(wanted))
        ):
            return _error(409, "version_conflict_engine_exception")
        version = 1 if known is None else known.version + 1
        kept = _keep(place, id_, json.loads(body), version)
        return (200 if there else 201), {"_seq_no": kept.seq_no, "_primary_term": 1}

    def _bulk(self, body: bytes) -> Answer:
        lines = iter(body.decode().removesuffix("\n").split("\n"))
        items = []
        for line in lines:
            ((verb, where),) = json.loads(line).items()
            source = json.loads(next(lines)) if verb == "index" else None
            items.append({verb: {"_id": where["_id"], **self._item(verb, where, source)}})
        return 200, {
            "errors": any("error" in one for i in items for one in i.values()),
            "items": items,
        }

    def _item(self, verb: str, where: dict[str, Any], source: Any) -> dict[str, Any]:
        assert where["version_type"] == "external_gte"
        if self.failing:
            return _failed(*self.failing.pop(0))
        place = self.indices.setdefault(where["_index"], Index({}))
        known = place.documents.get(where["_id"])
        if known is not None and known.version > where["version"]:
            return _failed(409, "version_conflict_engine_exception")
        for name, mapped in place.mappings.get("properties", {}).items():
            value = (source or {}).get(name)
            if mapped["type"] == "long" and value is not None and not isinstance(value, int):
                return _failed(400, "mapper_parsing_exception")
        there = known is not None and known.source is not None
        _keep(place, where["_id"], source, where["version"])
        return {"status": (200 if there else 201) if verb == "index" else (200 if there else 404)}

    def _query(self, index: str, what: str, body: bytes, options: dict[str, str]) -> Answer:
        place = self.indices.get(index)
        if place is None:
            return _error(404, "index_not_found_exception")
        if what == "_refresh":
            place.seen = dict(place.documents)
            return 200, {"_shards": {"failed": self.unseen}}
        if what == "_mapping":
            place.mappings.setdefault("properties", {}).update(json.loads(body)["properties"])
            return 200, {"acknowledged": True}
        assert what == "_delete_by_query"
        assert options == {"conflicts": "proceed", "refresh": "true"}
        ((field_, wanted),) = json.loads(body)["query"]["bool"]["must_not"]["range"].items()
        deleted = conflicts = 0
        for id_, seen in list(place.seen.items()):
            value = (seen.source or {}).get(field_)
            if seen.source is None or (value is not None and value > wanted["gt"]):
                continue
            if place.documents[id_] is not seen:
                conflicts += 1
                continue
            deleted += 1
            _keep(place, id_, None, seen.version + 1)
        place.seen = dict(place.documents)
        told = {"version_conflicts": conflicts, "timed_out": False, "failures": []}
        return 200, {"deleted": deleted, **told}


def _keep(place: Index, id_: str, source: Any, version: int) -> Document:
    place.seq_no += 1
    place.documents[id_] = kept = Document(source, version, place.seq_no)
    return kept


def _error(status: int, kind: str) -> Answer:
    return status, {"error": {"type": kind, "reason": "no words"}, "status": status}


def _failed(status: int, kind: str) -> dict[str, Any]:
    return {"status": status, "error": {"type": kind, "reason": "no words"}}


@contextmanager
def search_engine() -> Iterator[tuple[SearchEngine, str]]:
    """A running engine and its URL."""
    engine = SearchEngine()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            engine.authorization.add(self.headers.get("Authorization"))
            status, answer = engine.answer(self.command, self.path, body)
            if engine.cut:
                engine.cut -= 1
                self.close_connection = True
                return
            text = b"<html>no server</html>" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = _serve  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None:
            """Nothing is written to a test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield engine, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
