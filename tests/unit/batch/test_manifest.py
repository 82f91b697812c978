from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from duly.batch.manifest import MANIFEST, read_manifest
from duly.errors import PermanentError, RetryableError
from tests.unit.batch.spooling import COUNT, Context, make_world


def test_a_manifest_says_what_is_in_the_file(tmp_path: Path):
    world = make_world(tmp_path)
    job, context = world.job(), Context(tmp_path / "1")
    made = world.run(job, context)
    data = made.path.read_bytes()
    assert (made.size_bytes, made.sha256) == (len(data), sha256(data).hexdigest())
    assert made.name == "all.csv"
    assert made.rows == sum(chunk.rows for chunk in made.chunks) == COUNT
    at = 0
    for chunk in made.chunks:
        assert chunk.offset == at
        assert sha256(data[at : at + chunk.size_bytes]).hexdigest() == chunk.sha256
        at += chunk.size_bytes
    assert at == len(data)


async def test_verify_tells_a_file_that_is_another(tmp_path: Path):
    import asyncio

    world = make_world(tmp_path)
    job, context = world.job(), Context(tmp_path / "1")
    step = job.write.step(job)
    assert await step.verify(context) == ["1 holds no sealed file"]
    made = await asyncio.to_thread(world.run, job, context)
    assert await step.verify(context) == []
    data = made.path.read_bytes()
    made.path.write_bytes(data.replace(b"n", b"m", 1))
    assert await step.verify(context) == ["part-000.data has changed"]
    made.path.write_bytes(data + b"more")
    assert await step.verify(context) == ["part-000.data is too long"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(PermanentError, match="BATCH_NO_MANIFEST"):
        read_manifest(tmp_path)


def test_a_part_that_changed_before_it_was_sealed_is_not_sealed(tmp_path: Path):
    import asyncio

    world = make_world(tmp_path)
    job, context = world.job(partitions=2), Context(tmp_path / "1")
    asyncio.run(job.read.step(job).run(context))
    part = context.spool / "part-001.data"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(RetryableError, match="BATCH_SPOOL_CORRUPT"):
        asyncio.run(job.write.step(job).run(context))
    assert not (context.spool / MANIFEST).exists()
    again = world.run(job, context.next(tmp_path / "2"))
    assert again.rows == COUNT
