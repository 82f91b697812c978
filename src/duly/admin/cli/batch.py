"""``duly batch``: the runs of batch jobs - look, start, restart, run again, stop, verify.

Every command needs the App: its jobs say what is read and where it is sent.  A run is named by its
instance, as ``start`` and ``runs`` print it.  What changes something is audited.  ``start --wait``
works on the run in this very process and shows how far it is; without it any process with the role
``batch`` takes it up.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from duly.admin.cli.arguments import app_argument, app_then
from duly.admin.cli.output import (
    EXIT_OK,
    EXIT_PROBLEM,
    clean,
    document,
    json_option,
    note,
    table,
    when,
    write,
)
from duly.admin.cli.target import actor_options, by_of, require_app
from duly.batch.progress import Seen

if TYPE_CHECKING:
    from duly.app import App
    from duly.batch.runs import RunRow
    from duly.batch.service import Acted

__all__ = ["batch"]

F = TypeVar("F", bound=Callable[..., object])

_SHOW_SECONDS = 0.5
_LINE_SECONDS = 10.0
_VERIFY_SECONDS = 3_600.0
_yes = click.option("--yes", is_flag=True, help="Do it; without this it is only said.")


@click.group()
def batch() -> None:
    """Batch: queries that become files that are delivered."""


def _params_option(command: F) -> F:
    text = "A parameter of the instance; once for each."
    return click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE", help=text)(
        command
    )


def _params(given: Sequence[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    wrong = [name for name, equals, _ in pairs if not equals or not name]
    if wrong:
        raise click.UsageError(f"--param is NAME=VALUE, not {wrong[0]!r:.60}")
    return {name: value for name, _, value in pairs}


# --- looking --------------------------------------------------------------------------------------
@batch.command("jobs")
@app_argument
@json_option
def list_jobs(*, app: str | None, as_json: bool) -> None:
    """The jobs of an App, their parameters and schedules."""
    found = require_app(app).batches.jobs()
    if as_json:
        document({"jobs": found})
        return
    rows = [
        (
            one.job,
            ", ".join(f"{name}: {kind}" for name, kind in one.params.items()),
            ", ".join(one.steps),
            f"{one.schedule} ({one.time_zone})" if one.schedule else "by hand",
            "held" if one.held else when(one.next_at),
        )
        for one in found
    ]
    table(("JOB", "PARAMETERS", "STEPS", "SCHEDULE", "NEXT"), rows)


@batch.command("runs")
@app_argument
@click.option("--job", default="", metavar="NAME", help="Only of this job.")
@click.option("--status", default="", metavar="STATUS", help="Only in this status.")
@click.option("-n", "limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@json_option
def list_runs(*, app: str | None, job: str, status: str, limit: int, as_json: bool) -> None:
    """The newest runs."""
    found = require_app(app).batches.runs(job, status=status, limit=limit)
    if as_json:
        document({"runs": [_row(one) for one in found]})
        return
    if not found:
        write("no such runs" if job or status else "nothing has run yet")
        return
    rows = [
        (
            one.instance,
            _texts(one.params),
            one.status,
            one.attempt,
            when(one.moved_at),
            one.last_error,
        )
        for one in found
    ]
    table(("RUN", "PARAMETERS", "STATUS", "ATTEMPT", "MOVED", "ERROR"), rows)


@batch.command()
@app_then("instance", metavar="RUN")
@json_option
def show(*, instance: str, app: str | None, as_json: bool) -> None:
    """A run: who works on it, its attempts, how far its steps are."""
    found = require_app(app).batches.show(instance)
    if as_json:
        steps = [one._replace(data=None) for one in found.steps]
        shown = {"run": _row(found.row), "held": found.held, "attempts": list(found.attempts)}
        document({**shown, "steps": steps})
        return
    row = found.row
    write(clean(f"{row.instance} of {row.job} ({_texts(row.params)}) is {row.status}"))
    if found.held is not None:
        heard = f"heard of {found.held.age_seconds:.1f} s ago"
        write(clean(f"attempt {row.attempt} runs on {row.owner}, {heard}"))
    if row.last_error:
        write(clean(f"last error: {row.last_error}"))
    write("")
    rows = [
        (
            one.step,
            one.status,
            one.rows,
            one.size_bytes,
            one.attempt,
            when(one.moved_at),
            _facts(one.facts),
        )
        for one in found.steps
    ]
    table(("STEP", "STATUS", "ROWS", "BYTES", "ATTEMPT", "MOVED", "FACTS"), rows)
    write("")
    tried = [
        (one.attempt, one.status, one.owner, when(one.started_at), when(one.ended_at), one.error)
        for one in found.attempts
    ]
    table(("ATTEMPT", "STATUS", "OWNER", "BEGAN", "ENDED", "ERROR"), tried)


@batch.command()
@app_then("instance", metavar="RUN")
@click.option("--from-step", default="", metavar="STEP", help="As a re-run from this step.")
@json_option
def plan(*, instance: str, app: str | None, from_step: str, as_json: bool) -> None:
    """What another attempt would do, step by step. Changes nothing."""
    found = require_app(app).batches.plan(instance, from_step=from_step)
    if as_json:
        steps = list(found.steps)
        document({**found._asdict(), "steps": steps})
        return
    rows = [(one.step, one.does, one.rows, one.size_bytes) for one in found.steps]
    table(("STEP", "WOULD DO", "ROWS DONE", "BYTES DONE"), rows)
    if found.changed:
        note("the job is defined differently than when this run began")


@batch.command()
@app_then("instance", metavar="RUN")
@json_option
def verify(*, instance: str, app: str | None, as_json: bool) -> int:
    """Compare what was delivered with what was made. Changes nothing."""
    batches = require_app(app).batches

    async def ask() -> list[str]:
        async with asyncio.timeout(_VERIFY_SECONDS):
            return await batches.verify(instance)

    found = asyncio.run(ask())
    if as_json:
        document({"ok": not found, "differences": found})
    for line in () if as_json else found or ["the same"]:
        write(clean(line))
    return EXIT_PROBLEM if found else EXIT_OK


# --- acting ---------------------------------------------------------------------------------------
@batch.command()
@app_then("job", metavar="JOB")
@_params_option
@click.option("--wait", is_flag=True, help="Work on it here, and show how far it is.")
@actor_options
@json_option
def start(
    *,
    job: str,
    app: str | None,
    params: tuple[str, ...],
    wait: bool,
    actor: str | None,
    reason: str,
    as_json: bool,
) -> int:
    """Start an instance. One that is there already is left as it is."""
    found = require_app(app)
    batches = found.batches
    _prepare(found)
    values = batches.parsed(job, _params(params))
    acted = batches.start(job, values, by=by_of(actor, reason))
    if wait:
        asyncio.run(_work(found, acted.instance, quiet=as_json))
        acted = acted._replace(status=batches.show(acted.instance).row.status)
    _told(acted, as_json=as_json)
    return EXIT_OK if acted.status in ("due", "running", "done") else EXIT_PROBLEM


@batch.command()
@app_then("instance", metavar="RUN")
@click.option("--wait", is_flag=True, help="Work on it here, and show how far it is.")
@actor_options
@json_option
def restart(
    *, instance: str, app: str | None, wait: bool, actor: str | None, reason: str, as_json: bool
) -> int:
    """Let a failed or stopped run go on from where it was."""
    found = require_app(app)
    acted = found.batches.restart(instance, by=by_of(actor, reason))
    if wait:
        asyncio.run(_work(found, instance, quiet=as_json))
        acted = acted._replace(status=found.batches.show(instance).row.status)
    _told(acted, as_json=as_json)
    return EXIT_OK if acted.status in ("due", "running", "done") else EXIT_PROBLEM


@batch.command()
@app_then("instance", metavar="RUN")
@click.option("--from-step", default="", metavar="STEP", help="Keep what is before this step.")
@_yes
@actor_options
@json_option
def rerun(
    *,
    instance: str,
    app: str | None,
    from_step: str,
    yes: bool,
    actor: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Do a run again, whole or from a step on."""
    batches = require_app(app).batches
    if not yes:
        text = f"everything from {from_step} on" if from_step else "everything"
        raise click.UsageError(f"this would do {text} of {instance} again: add --yes")
    _told(batches.rerun(instance, by=by_of(actor, reason), from_step=from_step), as_json=as_json)


@batch.command()
@app_then("instance", metavar="RUN")
@_yes
@actor_options
@json_option
def resend(
    *, instance: str, app: str | None, yes: bool, actor: str | None, reason: str, as_json: bool
) -> None:
    """Deliver the file of a run again."""
    batches = require_app(app).batches
    if not yes:
        raise click.UsageError(f"this would deliver the file of {instance} again: add --yes")
    _told(batches.resend(instance, by=by_of(actor, reason)), as_json=as_json)


def _verb(name: str, text: str, *, asks: str = "") -> None:
    """A command that is one verb on one run."""

    def run(
        *, instance: str, app: str | None, yes: bool, actor: str | None, reason: str, as_json: bool
    ) -> None:
        batches = require_app(app).batches
        if asks and not yes:
            raise click.UsageError(f"this would {name} {instance}: {asks}; add --yes")
        _told(getattr(batches, name)(instance, by=by_of(actor, reason)), as_json=as_json)

    run.__doc__ = text
    wrapped = json_option(actor_options(_yes(app_then("instance", metavar="RUN")(run))))
    batch.command(name)(wrapped)


_verb("stop", "Stop a run at its next safe point.")
_verb("kill", "Stop a run now.", asks="what its attempt has in hand is lost")
_verb("abandon", "Give a run up.", asks="only a re-run brings it back")


@batch.command()
@app_then("job", metavar="JOB")
@click.option("--from", "since", required=True, metavar="TIME", help="From this time on.")
@click.option("--to", "until", required=True, metavar="TIME", help="Up to this time.")
@_yes
@actor_options
@json_option
def backfill(
    *,
    job: str,
    app: str | None,
    since: str,
    until: str,
    yes: bool,
    actor: str | None,
    reason: str,
    as_json: bool,
) -> None:
    """Start the instances of all times of a job's schedule in a span."""
    batches = require_app(app).batches
    params = batches.times(job, _time(since), _time(until))
    if not yes:
        raise click.UsageError(f"this would start up to {len(params)} runs of {job}: add --yes")
    found = batches.backfill(job, params, by=by_of(actor, reason))
    if as_json:
        document({"runs": found})
        return
    table(("RUN", "STATUS", "NEW"), [(one.instance, one.status, one.changed) for one in found])


@batch.command()
@app_then("job", metavar="JOB")
@actor_options
@json_option
def hold(*, job: str, app: str | None, actor: str | None, reason: str, as_json: bool) -> None:
    """Hold a job's schedule: nothing is started by time."""
    _told(require_app(app).batches.hold(job, by=by_of(actor, reason)), as_json=as_json)


@batch.command()
@app_then("job", metavar="JOB")
@actor_options
@json_option
def release(*, job: str, app: str | None, actor: str | None, reason: str, as_json: bool) -> None:
    """Release a job's schedule; what was missed is made up for as the job says."""
    _told(require_app(app).batches.release(job, by=by_of(actor, reason)), as_json=as_json)


# --- working here ---------------------------------------------------------------------------------
async def _work(app: App, instance: str, *, quiet: bool) -> None:
    """Work on one run until it is done, has failed, or somebody wants it to stop."""
    from duly.batch.runner import BatchRole
    from duly.observe.logging import log_fact
    from duly.running import batch_context

    app.hooks.add(log_fact)
    role = BatchRole(batch_context(app), only=instance)
    loop = asyncio.get_running_loop()
    for which in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(which, role.stop)
    working = asyncio.create_task(role.run())

    def seen() -> Seen | None:
        attempt = role.attempts.get(instance)
        return None if attempt is None else attempt.progress.seen()

    await _show_progress(working, (lambda: None) if quiet else seen)
    await working


async def _show_progress(working: asyncio.Task[None], seen: Callable[[], Seen | None]) -> None:
    """One live line on a terminal where rich is installed; else a line now and then."""
    live = _live()
    told_at = time.monotonic()
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=_SHOW_SECONDS)
            now = seen()
            if now is None:
                continue
            if live is not None:
                live.update(_line(now))
            elif time.monotonic() - told_at >= _LINE_SECONDS:
                told_at = time.monotonic()
                note(_line(now))
    finally:
        if live is not None:
            live.stop()


def _live() -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    status = Console(stderr=True).status("")
    status.start()
    return status


def _line(seen: Seen) -> str:
    parts = [seen.step, f"{seen.rows:,} rows", _bytes(seen.size_bytes)]
    if seen.total_bytes:
        parts[-1] += f" of {_bytes(seen.total_bytes)}"
    if seen.rows_per_second:
        parts.append(f"{seen.rows_per_second:,.0f} rows/s")
    if seen.bytes_per_second:
        parts.append(f"{_bytes(seen.bytes_per_second)}/s")
    if seen.seconds_left is not None:
        minutes, seconds = divmod(round(seen.seconds_left), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(parts)


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1_000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1_000
    return f"{size:.1f} TB"


# --- details --------------------------------------------------------------------------------------
def _prepare(app: App) -> None:
    """On SQLite make the tables, elsewhere require them. Raises SchemaError."""
    from duly.outbox.schema import Schema

    Schema(app.database, app.name).start()


def _told(acted: Acted, *, as_json: bool) -> None:
    if as_json:
        document(acted)
    else:
        more = "" if acted.changed else " already"
        write(clean(f"{acted.instance} is {acted.status}{more}"))


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{text!r:.60} is no time such as 2026-11-22T03:00+01:00") from None
    return found.astimezone() if found.tzinfo is None else found


def _row(row: RunRow) -> dict[str, object]:
    names = ("due_at", "created_at", "started_at", "moved_at", "ended_at")
    times = {name: when(getattr(row, name)) for name in names}
    return {**row._asdict(), "params": json.loads(row.params), **times}


def _texts(params: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in json.loads(params).items())


def _facts(facts: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in facts.items())
