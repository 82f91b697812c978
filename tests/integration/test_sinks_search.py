"""A search index on a real server: what it does with documents, marks, rights, and its faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from duly.errors import (
    ConfigurationError,
    SinkLostError,
    SinkRefusedError,
    SinkUnavailableError,
    StaleLeaseError,
)
from duly.kernel.upserts import Clear, Put, Remove
from duly.sink import Batch, Fed, Feed
from duly.sinks import SearchIndex
from duly.sinks.search import STATE_INDEX
from tests.servers.opensearch import OpenSearch
from tests.servers.search_engine import search_engine

FIELDS = {"id": {"type": "integer"}, "n": {"type": "long"}}


@pytest.fixture
def server(opensearch: OpenSearch) -> Iterator[OpenSearch]:
    yield opensearch
    opensearch.clear("s")


def opened(server: OpenSearch, *, token: int = 1, epoch: int = 1, **mappings: Any) -> SearchIndex:
    made = {"properties": FIELDS, **mappings}
    sink = SearchIndex(server.feeder, index=server.index, mappings=made, ca_file=server.ca_file)
    sink.open(Feed("s", token, epoch))
    return sink


def put(id_: object, n: object = 0) -> Put:
    return Put({"id": id_}, {"id": id_, "n": n})


def test_a_document_that_does_not_fit_is_named_by_its_field(server: OpenSearch) -> None:
    sink = opened(server, dynamic="strict")
    sink.apply(Batch([put(1)], "0001"))
    with pytest.raises(SinkRefusedError) as refused:
        sink.apply(Batch([put(6), put(7, "secret text"), Remove({"id": 1})], "0002"))
    said = str(refused.value)
    assert "document '7': mapper_parsing_exception (400), field [n] of type [long]" in said
    assert "secret" not in said
    assert sink.look("s") == Fed(1, "0001")
    assert server.documents().keys() == {"6"}
    unknown = Put({"id": 8}, {"id": 8, "more": 1})
    with pytest.raises(SinkRefusedError, match=r"'8': strict_dynamic_mapping.*, field \[more\]"):
        opened(server, token=2).apply(Batch([unknown], "0002"))


@pytest.mark.parametrize("dynamic", [False, "strict"])
def test_marks_are_found_where_new_fields_are_not_mapped(
    server: OpenSearch, dynamic: object
) -> None:
    sink = opened(server, dynamic=dynamic)
    sink.apply(Batch([put(1), put(2)], "0001"))
    sink = opened(server, epoch=2, dynamic=dynamic)
    sink.apply(Batch([put(2, 5), put(3)], "0002", complete=True))
    assert server.documents().keys() == {"2", "3"}
    server.clear()
    server.told("PUT", f"/{server.index}", {"mappings": {"dynamic": dynamic, "properties": FIELDS}})
    assert sink.look("s") == Fed(), "of an index that somebody made, and whose marks are not known"
    sink = opened(server, epoch=3, dynamic=dynamic)
    sink.apply(Batch([put(4)], "0003", complete=True))
    assert server.documents().keys() == {"4"}


def test_an_older_reader_brings_back_nothing_that_the_server_has_forgotten(
    server: OpenSearch,
) -> None:
    older = opened(server)
    older.apply(Batch([put(1), put(2)], "0001"))
    newer = opened(server, token=2)
    newer.apply(Batch([Remove({"id": 1})], "0002"))
    _reopen(server)  # as after a minute, the version of what was removed is not known any more
    for late in (put(1, 1), Clear()):
        with pytest.raises(StaleLeaseError):
            older.apply(Batch([late], "0002"))
    assert server.documents().keys() == {"2"}
    newer.apply(Batch([put(3)], "0003"))
    assert server.documents().keys() == {"2", "3"}


def _reopen(server: OpenSearch) -> None:
    server.told("POST", f"/{server.index}/_close")
    server.told("POST", f"/{server.index}/_open")


def test_an_index_that_takes_nothing_is_waited_for(server: OpenSearch) -> None:
    sink, settings = opened(server), f"/{server.index}/_settings"
    sink.apply(Batch([put(1)], "0001"))
    for block in ("read_only_allow_delete", "write"):  # a full disk, and an operator
        server.told("PUT", settings, {f"index.blocks.{block}": True})
        with pytest.raises(SinkUnavailableError, match="cluster_block_exception"):
            sink.apply(Batch([put(2)], "0002"))
        server.told("PUT", settings, {f"index.blocks.{block}": None})
    server.told("POST", f"/{server.index}/_close")
    with pytest.raises(SinkUnavailableError, match="index_closed_exception"):
        sink.apply(Batch([put(2)], "0002"))
    server.told("POST", f"/{server.index}/_open")
    sink.apply(Batch([put(2), put(1, 1)], "0002"))
    assert sink.look("s") == Fed(1, "0002")
    assert {id_: one["n"] for id_, one in server.documents().items()} == {"1": 1, "2": 0}


def test_an_index_that_was_dropped_is_not_made_anew_by_documents(server: OpenSearch) -> None:
    sink = opened(server, epoch=4)
    sink.apply(Batch([put(1)], "0001"))
    server.clear()
    with pytest.raises(SinkLostError):
        sink.apply(Batch([put(2)], "0002"))
    assert server.ask("GET", f"/{server.index}")[0] == 404
    assert sink.look("s") == Fed()


def test_who_may_not_is_told_so_without_the_password(server: OpenSearch) -> None:
    login = server.feeder.partition("://")[2].rpartition("@")[0]
    wrong = server.feeder.replace(login, "feeder:s3cret")
    opened(server)
    for url in (wrong, server.reader):
        sink = SearchIndex(url, index=server.index, ca_file=server.ca_file)
        with pytest.raises(ConfigurationError) as denied:
            sink.open(Feed("s", 2, 1))
        assert denied.value.code == "SINK_DENIED"
        assert "s3cret" not in str(denied.value)
        assert login.partition(":")[2] not in str(denied.value)
    with pytest.raises(SinkUnavailableError, match="SSLCertVerificationError"):
        SearchIndex(server.feeder, index=server.index).look("s")


def test_the_model_answers_as_the_server_does(server: OpenSearch) -> None:
    """What unit tests take for a server: each request's status, and what the sink reads of it."""
    state = f"/{STATE_INDEX}/_doc/{server.index}:s"
    with search_engine() as (_, url), closing(OpenSearch(url)) as model:
        model.index = server.index
        assert list(_script(model, state)) == list(_script(server, state))


def _script(one: OpenSearch, state: str) -> Iterator[Any]:
    index = f"/{one.index}"
    marked = {"properties": {**FIELDS, "duly_mark": {"type": "long"}}}
    below = {"query": {"bool": {"must_not": {"range": {"duly_mark": {"gt": 5}}}}}}
    yield _asked(one, "GET", state)
    yield _asked(one, "GET", index)
    yield _asked(one, "PUT", index, {"mappings": {"dynamic": False, "properties": FIELDS}})
    yield _asked(one, "PUT", index, {"mappings": marked})
    yield _asked(one, "PUT", f"{index}/_mapping", {"properties": {"duly_mark": {"type": "long"}}})
    _, told = one.ask("GET", index)
    yield told[one.index]["mappings"]["properties"]
    yield _asked(one, "PUT", f"{state}?op_type=create", {"n": 1})
    yield _asked(one, "PUT", f"{state}?op_type=create", {"n": 1})
    _, told = one.ask("GET", state)
    yield told["_source"]
    at = f"if_seq_no={told['_seq_no']}&if_primary_term={told['_primary_term']}"
    yield _asked(one, "PUT", f"{state}?{at}", {"n": 2})
    yield _asked(one, "PUT", f"{state}?{at}", {"n": 3})
    for version, n in ((5, 1), (5, 2), (4, 3), (9, "text"), (7, None)):
        yield _items(one, ("index", "1", version, {"n": n, "duly_mark": version}))
    yield _items(one, ("index", "2", 5, {"duly_mark": 5}), ("delete", "none", 5, None))
    yield _items(one, ("delete", "1", 6, None), ("delete", "1", 7, None), ("delete", "1", 7, None))
    yield _items(one, ("index", "1", 6, {"duly_mark": 6}), ("index", "3", 6, {"duly_mark": 6}))
    yield _asked(one, "POST", f"{index}/_refresh")
    status, told = one.ask(
        "POST", f"{index}/_delete_by_query?conflicts=proceed&refresh=true", below
    )
    yield status, told["deleted"], told["timed_out"], told["failures"]
    yield _items(one, ("index", "2", 5, {}), ("index", "2", 6, {}), ("delete", "3", 6, None))


def _asked(one: OpenSearch, verb: str, path: str, body: Any = None) -> tuple[int, str]:
    status, told = one.ask(verb, path, body)
    error = told.get("error")
    return status, error["type"] if error else ""


def _items(one: OpenSearch, *items: tuple[str, str, int, Any]) -> list[Any]:
    lines = []
    for verb, id_, version, source in items:
        where = {"_index": one.index, "_id": id_, "version": version}
        lines.append({verb: {**where, "version_type": "external_gte"}})
        lines += [source] if source is not None else []
    told = one.told("POST", "/_bulk", "".join(f"{json.dumps(line)}\n" for line in lines))
    found = [next(iter(item.values())) for item in told["items"]]
    return [(item["status"], item.get("error", {}).get("type")) for item in found]
