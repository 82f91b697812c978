"""What a search engine may answer, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from duly.errors import ConfigurationError, SinkLostError, SinkRefusedError, SinkUnavailableError
from duly.kernel.upserts import Put, Remove
from duly.sink import Batch, Fed, Feed
from duly.sinks.search import STATE_INDEX, SearchIndex
from tests.servers.search_engine import SearchEngine, search_engine

LONG = {"properties": {"n": {"type": "long"}}}


@pytest.fixture
def served() -> Iterator[tuple[SearchEngine, str]]:
    with search_engine() as served:
        yield served


def put(id_: int, n: object = 0) -> Put:
    return Put({"id": id_}, {"id": id_, "n": n})


def opened(url: str, token: int = 1, epoch: int = 1) -> SearchIndex:
    sink = SearchIndex(url, index="found", mappings=LONG)
    sink.open(Feed("s", token, epoch))
    return sink


def test_documents_that_are_put_off_are_written_the_next_time(
    served: tuple[SearchEngine, str],
) -> None:
    engine, url = served
    sink = opened(url)
    engine.failing = [(429, "rejected_execution_exception")]
    batch = Batch([put(1), put(2)], "0001")
    with pytest.raises(SinkUnavailableError, match=r"1 documents were put off \(rejected"):
        sink.apply(batch)
    assert engine.documents("found").keys() == {"2"}
    assert sink.look("s") == Fed(1, "")
    sink.apply(batch)
    assert engine.documents("found").keys() == {"1", "2"}
    assert sink.look("s") == Fed(1, "0001")


def test_a_document_that_does_not_fit_is_named(served: tuple[SearchEngine, str]) -> None:
    engine, url = served
    sink = opened(url)
    with pytest.raises(SinkRefusedError, match=r"document '7': mapper_parsing_exception \(400\)"):
        sink.apply(Batch([put(6), put(7, "secret text")], "0001"))
    assert sink.look("s") == Fed(1, "")
    assert engine.documents("found").keys() == {"6"}


def test_a_document_of_somebody_else_is_told(served: tuple[SearchEngine, str]) -> None:
    engine, url = served
    sink = opened(url)
    sink.apply(Batch([put(1)], "0001"))
    engine.indices["found"].documents["1"].version = 1 << 60
    with pytest.raises(SinkRefusedError) as refused:
        sink.apply(Batch([put(1)], "0002"))
    assert refused.value.code == "SINK_FOREIGN"


def test_an_index_that_was_made_anew_was_never_fed(served: tuple[SearchEngine, str]) -> None:
    engine, url = served
    sink = opened(url, epoch=4)
    sink.apply(Batch([put(1)], "0001"))
    assert sink.look("s") == Fed(4, "0001")
    del engine.indices["found"]
    assert sink.look("s") == Fed()
    sink.open(Feed("s", token=1, epoch=5))
    assert sink.look("s") == Fed(5, "")


def test_a_state_that_was_put_back_is_found_out(served: tuple[SearchEngine, str]) -> None:
    engine, url = served
    sink = opened(url)
    engine.indices[STATE_INDEX].documents["found:s"].seq_no += 1
    with pytest.raises(SinkLostError):
        sink.apply(Batch([put(1)], "0001"))


def test_what_stands_before_a_server_that_is_down_is_waited_for(
    served: tuple[SearchEngine, str],
) -> None:
    engine, url = served
    sink = opened(url)
    for call in (lambda: sink.look("s"), lambda: sink.apply(Batch([put(1)], "0001"))):
        engine.down = 1
        with pytest.raises(SinkUnavailableError, match="no reason given"):
            call()
    sink.apply(Batch([Remove({"id": 1})], "0002"))
    assert sink.look("s") == Fed(1, "0002")


def test_a_password_is_sent_and_not_shown(served: tuple[SearchEngine, str]) -> None:
    engine, url = served
    sink = opened(url.replace("http://", "http://me:s3cret@"))
    assert engine.authorization == {"Basic bWU6czNjcmV0"}
    assert "s3cret" not in f"{sink.place} {sink!r}"
    sink.close()


@pytest.mark.parametrize("url", ["redis://host", "http://", "http://host:x", "http://host/?q=1"])
def test_what_is_no_url_of_a_search_engine_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SearchIndex(url, index="found")
    assert refused.value.code == "SINK_URL"


def test_what_becomes_of_a_document_is_for_the_right_person(
    served: tuple[SearchEngine, str],
) -> None:
    engine, url = served
    sink = opened(url)
    batch = Batch([put(1)], "0001")
    engine.failing = [(403, "security_exception")]  # the rights were taken away
    with pytest.raises(ConfigurationError) as denied:
        sink.apply(batch)
    assert denied.value.code == "SINK_DENIED"
    for verb in (put(1), Remove({"id": 1})):
        engine.failing = [(404, "index_not_found_exception")]  # dropped, and may not be made anew
        with pytest.raises(SinkLostError):
            sink.apply(Batch([verb], "0001"))
    engine.unseen = 1
    with pytest.raises(SinkUnavailableError, match="not all of it can be seen"):
        sink.apply(batch._replace(complete=True))
    assert sink.look("s") == Fed(1, "")


def test_a_key_that_is_no_id_is_refused_by_name_and_need_not_be_removed(
    served: tuple[SearchEngine, str],
) -> None:
    engine, url = served
    sink = opened(url)
    for key, size in (("ü" * 257, 514), ("", 0)):
        with pytest.raises(SinkRefusedError, match=f"an id has 1 to 512 bytes, this has {size}"):
            sink.apply(Batch([Put({"id": key}, {"id": key})], "0001"))
        sink.apply(Batch([Remove({"id": key})], "0002"))
    sink.apply(Batch([Put({"id": "ü" * 256}, {"id": 1})], "0003"))
    assert engine.documents("found").keys() == {"ü" * 256}
    assert "POST /_bulk" in engine.asked


def test_a_copy_is_one_index(served: tuple[SearchEngine, str]) -> None:
    engine, url = served
    sink = opened(url)
    engine.aliases["found"] = ["found", "older"]
    with pytest.raises(ConfigurationError, match="is 2 indices"):
        sink.look("s")


def test_certificates_that_cannot_be_read_are_a_setting(tmp_path: Path) -> None:
    sink = SearchIndex("https://host", index="found", ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(ConfigurationError, match=r"none\.pem holds no certificates") as refused:
        sink.look("s")
    assert refused.value.code == "SINK_URL"


def test_what_was_not_answered_may_be_asked_again(served: tuple[SearchEngine, str]) -> None:
    engine, url = served
    sink = opened(url)
    batch = Batch([put(1)], "0001")
    for lost in (1, 2):  # the answer to the documents, then that to the state
        engine.cut = lost
        with pytest.raises((SinkUnavailableError, SinkLostError)):
            sink.apply(batch)
    engine.cut = 0
    with pytest.raises(SinkUnavailableError):
        engine.cut = 1
        sink.look("s")
    sink.open(Feed("s", 2, 1))
    sink.apply(batch)
    assert engine.documents("found").keys() == {"1"}
