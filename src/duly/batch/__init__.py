"""Batch: a query becomes a file and the file is delivered, restartable to the row.

    Query -> process -> CsvFile, JsonLines ... -> Sftp, Ftp, Ftps, Local

What a job is declared with; each is loaded when it is first named, so that an App without such a
job loads none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duly.batch.destinations import Ftp, Ftps, Local, Sftp
    from duly.batch.extract import Process, Query
    from duly.batch.formats.csv_file import CsvFile
    from duly.batch.formats.fixed_width import FixedWidth, Width
    from duly.batch.formats.json_file import JsonArray, JsonLines
    from duly.batch.formats.parquet import Parquet
    from duly.batch.instance import Window
    from duly.batch.job import Finished
    from duly.batch.steps import Step, StepContext, StopAtCheckpoint

__all__ = [
    "CsvFile",
    "Finished",
    "FixedWidth",
    "Ftp",
    "Ftps",
    "JsonArray",
    "JsonLines",
    "Local",
    "Parquet",
    "Process",
    "Query",
    "Sftp",
    "Step",
    "StepContext",
    "StopAtCheckpoint",
    "Width",
    "Window",
]

_HOMES = {
    "destinations": ("Ftp", "Ftps", "Local", "Sftp"),
    "extract": ("Process", "Query"),
    "formats.csv_file": ("CsvFile",),
    "formats.fixed_width": ("FixedWidth", "Width"),
    "formats.json_file": ("JsonArray", "JsonLines"),
    "formats.parquet": ("Parquet",),
    "instance": ("Window",),
    "job": ("Finished",),
    "steps": ("Step", "StepContext", "StopAtCheckpoint"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
