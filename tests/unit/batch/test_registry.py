from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from duly import App, Retry
from duly.batch.job import Job
from duly.errors import ConfigurationError, DulyError, NotFoundError
from tests.unit.batch.world import Declaration, LineStep, Script, SendStep, make_app


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    made = make_app(tmp_path)
    yield made
    made.close()


class Lines:
    read = Declaration(LineStep, Script())
    send = Declaration(SendStep, Script())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Upper", {}, "no name of a job"),
        ("a/b", {}, "no name of a job"),
        ("x" * 61, {}, "no name of a job"),
        ("lines", {"every": "day"}, "takes no every"),
        ("lines", {"params": {"Day": date}}, "no name of a parameter"),
        ("lines", {"params": {"day": dict}}, "is one of str, int"),
        ("lines", {"params": {f"p{n}": int for n in range(9)}}, "at most 8"),
        ("lines", {"time_zone": "UTC"}, "goes with schedule"),
        ("lines", {"schedule": "every day"}, "no cron expression"),
        ("lines", {"schedule": "0 3 * * *", "time_zone": "Mars"}, "no time zone"),
        ("lines", {"schedule": "0 3 * * *", "misfire": "panic"}, "misfire is one of"),
        ("lines", {"schedule": "0 3 * * *", "params": {"part": int}}, "say params_at"),
        ("lines", {"on_change": "shrug"}, "'refuse' or 'fork'"),
        ("lines", {"retry": Retry(on=(OSError,))}, "for calls"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    app: App, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        app.batch(name, **options)(Lines)
    assert not app.jobs.names


def test_a_job_needs_something_to_read_and_a_name_of_its_own(app: App) -> None:
    with pytest.raises(ConfigurationError, match="has no read"):
        app.batch("empty")(type("Empty", (), {}))
    with pytest.raises(ConfigurationError, match="decorates a class"):
        app.batch("function")(lambda: None)  # type: ignore[arg-type,type-var]
    assert app.batch("lines", params={"day": date})(Lines) is Lines
    with pytest.raises(ConfigurationError, match="two jobs"):
        app.batch("lines")(Lines)
    with pytest.raises(NotFoundError) as unknown:
        app.jobs.get("other")
    assert unknown.value.code == "BATCH_JOB_UNKNOWN"


def test_the_definition_follows_what_shapes_the_file(app: App) -> None:
    def defined(**parts: Any) -> str:
        given = {"read": Lines.read, "send": Lines.send, **parts}
        return Job(name="lines", places=None, params={"day": date}, **given).definition  # type: ignore[arg-type]

    def process(row: Any) -> Any:
        return row

    def other(row: Any) -> Any:
        return row or None

    same = defined()
    assert same == defined(retry=Retry(attempts=2))
    assert same != defined(read=Declaration(LineStep, Script(), "other"))
    assert defined(process=process) == defined(process=process) != same
    assert defined(process=process) != defined(process=other)
    assert defined(write={"a": (1, {2, 3})}) == defined(write={"a": (1, {3, 2})})
    with pytest.raises(ConfigurationError, match="definition"):
        defined(write=object())


def test_the_same_step_twice_is_found_at_the_check(app: App) -> None:
    twice = {"read": Lines.read, "send": Declaration(LineStep, Script())}
    app.batch("twice")(type("Twice", (), twice))
    assert [finding.code for finding in app.jobs.check()] == ["BATCH_JOB"]


def test_jobs_are_listed_before_there_are_tables(tmp_path: Path) -> None:
    app = App("new", database=f"sqlite:///{tmp_path}/new.db")
    app.batch("lines", params={"at": datetime}, schedule="0 3 * * *")(Lines)
    (line,) = app.batches.jobs()
    assert (line.job, line.params, line.steps) == ("lines", {"at": "datetime"}, ("extract", "send"))
    assert line.next_at is not None
    app.close()


async def test_verification_says_what_there_is_to_compare(app: App, tmp_path: Path) -> None:
    from tests.unit.batch.world import BY, add_job, until_status, working

    instance = app.batches.start(add_job(app, Script()), {"day": date(2026, 1, 1)}, by=BY).instance
    with pytest.raises(DulyError) as refused:
        await app.batches.verify(instance)
    assert refused.value.code == "BATCH_VERIFY"
    async with working(app):
        await until_status(app, instance, "done")
    assert await app.batches.verify(instance) == []
    (folder,) = (tmp_path / "spool" / "shop" / instance).iterdir()
    (folder / "lines").write_text("0\n")
    assert await app.batches.verify(instance) == ["lines are missing"]
    app.batch_folders.remove(instance)
    with pytest.raises(DulyError, match="files of"):
        await app.batches.verify(instance)
