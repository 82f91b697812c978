"""Where one run with sinks takes place: a source, and the copies of its tables.

Owns making and removing the targets, and how far each copy is from its table at this moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from tests.crash.cdc_copies import (
    COPIES,
    COUNTED,
    HISTORY,
    SOURCES,
    Cache,
    Copy,
    Rows,
    Step,
    Tables,
)
from tests.crash.cdc_stage import BULK_EVERY, CdcStage, make_cdc_stage
from tests.crash.stage import new_database


@dataclass
class SinksStage(CdcStage):
    """A stage with copies. what: which, a key of ``COPIES``. servers: for the targets, by form;
    targets: URLs in them, and the mark of the names in Redis."""

    what: str = ""
    servers: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Tables] = field(default_factory=dict)
    cache: Any = None

    @property
    def copies(self) -> tuple[Copy, ...]:
        """The copies of this run; the first one stands for all where one is looked at."""
        return COPIES[self.what]

    def prepare(self) -> None:
        """Make the source's tables, and those of the copies."""
        super().prepare()
        if "redis" in self.servers:
            mark = f"crash_{uuid4().hex[:16]}"
            self.targets |= {"redis": self.servers["redis"], "mark": mark}
            self.cache = Cache(self.servers["redis"], mark)
        for form in dict.fromkeys(copy.form for copy in self.copies if copy.is_sql):
            self.targets[form] = f"sqlite:///{self.folder}/copies.db"
            if form == "postgres":
                server = self.servers[form]
                place = urlsplit(server)._replace(path=f"/{new_database(server)}")
                self.targets[form] = place.geturl()
            self.tables[form] = Tables(form, self.targets[form])
            self.tables[form].make([copy.table for copy in self.copies if copy.form == form])

    # --- how far they are -----------------------------------------------------------------------
    def source(self, table: str, columns: tuple[str, ...]) -> Rows:
        """What a table of the source holds."""
        rows = self.rows(f"SELECT id, {', '.join(columns)} FROM {SOURCES.get(table, table)}")
        return {str(key): tuple(values) for key, *values in rows}

    def held(self, copy: Copy, columns: tuple[str, ...]) -> Rows:
        """What a copy holds."""
        if copy.is_sql:
            return self.tables[copy.form].held(copy.table, columns)
        found: Rows = self.cache.held(copy, columns, highest=self._highest())
        return found

    def strangers(self, copy: Copy) -> set[str]:
        """Names of entries of a copy that are of no row."""
        found: set[str] = self.cache.strangers(copy, highest=self._highest())
        return found

    def _highest(self) -> int:
        return self.number(f"SELECT max(seq) FROM {HISTORY}")

    def trail(self, copy: Copy) -> Iterator[Step]:
        """Every write to a copy, or what was seen of it."""
        if copy.is_sql:
            yield from self.tables[copy.form].trail(copy.table)
            return
        for fact in self.facts("meddler"):
            if fact["what"] == "seen" and fact["copy"] == copy.name:
                yield from (Step(k, "seen", v) for k, v in fact["rows"].items())

    def filled(self, copy: Copy) -> int:
        """How many entries readers have put into a cache in this run."""
        facts = (f for f in self.facts("meddler") if f["what"] == "filled")
        return sum(fact["counts"].get(copy.name, 0) for fact in facts)

    def behind(self) -> dict[str, int]:
        """How many rows of each copy are not as they are to be; only of those where some are."""
        tables = {copy.table for copy in self.copies}
        source = {table: self.source(table, ("v",)) for table in tables.difference(COUNTED)}
        found = {
            copy.name: self._counted_behind(copy)
            if copy.table in COUNTED
            else len(wrong_rows(copy, source[copy.table], self.held(copy, ("v",))))
            for copy in self.copies
        }
        return {name: count for name, count in found.items() if count}

    def _counted_behind(self, copy: Copy) -> int:
        source = SOURCES.get(copy.table, copy.table)
        ((count, total),) = self.rows(f"SELECT count(*), coalesce(sum(v), 0) FROM {source}")
        if not copy.is_sql:
            return abs(int(count) - self.cache.size(copy, highest=self._highest()))
        copied, copied_total = self.tables[copy.form].size(copy.table)
        every = BULK_EVERY if copy.table == "bulk" else 1
        return abs(int(count) - copied) // every + (int(total) != copied_total)

    def states(self) -> dict[str, dict[str, Any]]:
        """What each stream knows besides its position."""
        return {name: json.loads(text) for name, text in self.rows(
            "SELECT stream, state FROM duly_offset")}  # fmt: skip

    def snapshots_under_way(self) -> int:
        """As ``CdcStage``, in all streams."""
        return sum(
            not one.get("done") for s in self.states().values() for one in s["tables"].values()
        )

    def positions(self) -> dict[str, str]:
        """How far each stream is."""
        return dict(self.rows("SELECT stream, position FROM duly_offset"))

    def offset(self) -> tuple[str, dict[str, Any]]:
        """As ``CdcStage``, of the first copy's stream."""
        stream = self.copies[0].stream
        return self.positions().get(stream, ""), self.states().get(stream, {})

    def held_by(self, pid: int) -> set[str]:
        """The streams whose lease a process has, or had when it died."""
        rows = self.rows("SELECT name, holder FROM duly_lease WHERE kind = 'role'")
        mine = {
            name for name, holder in rows if holder.partition("/")[0].split(".")[2:3] == [f"{pid}"]
        }
        return {name.removeprefix("role/cdc/") for name in mine}

    def can_write(self) -> bool:
        """As ``CdcStage``, in the targets as well."""
        return super().can_write() and all(one.is_free() for one in self.tables.values())

    # --- the end --------------------------------------------------------------------------------
    def keep_tables(self) -> None:
        """As ``CdcStage``, the copies and their trails as well."""
        super().keep_tables()
        for copy in self.copies:
            with (self.folder / f"copy-{copy.name}.txt").open("w") as file:
                for key, values in sorted(self.held(copy, copy.columns).items()):
                    file.write(f"{key} {values}\n"[:200])
                file.writelines(f"{step}\n" for step in self.trail(copy))

    def remove(self, *, keep_folder: bool = False) -> None:
        """As ``CdcStage``, the targets as well."""
        if self.cache is not None:
            self.cache.remove()
        for form, tables in self.tables.items():
            tables.close()
            if form == "postgres":
                _drop(self.servers[form], self.targets[form])
        super().remove(keep_folder=keep_folder)


def wrong_rows(copy: Copy, source: Rows, held: Rows) -> set[str]:
    """The keys that a copy has otherwise than it should; who only removes may have less."""
    keys = source.keys() | held.keys() if copy.is_filled else held.keys()
    return {key for key in keys if held.get(key) != source.get(key)}


def make_sinks_stage(
    pair: str, folder: Path, *, server: str, servers: dict[str, str]
) -> SinksStage:
    """A fresh stage. server: of the source, if it needs one; servers: of the targets, by form."""
    kind = partial(SinksStage, what=pair.split()[2], servers=servers)
    stage = make_cdc_stage(pair, folder, server=server, kind=kind)
    assert isinstance(stage, SinksStage)
    return stage


def _drop(server: str, url: str) -> None:
    import psycopg

    with psycopg.connect(server, autocommit=True, connect_timeout=10) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {urlsplit(url).path[1:]} WITH (FORCE)")
