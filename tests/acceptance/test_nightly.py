"""The example of a nightly settlement: killed half-way, typed again, the same byte for byte."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 60.0
START = (
    "batch",
    "start",
    "settlement:app",
    "settlement",
    "-p",
    "carrier=UA",
    "-p",
    "month=2013-06",
)

pytestmark = pytest.mark.timeout(180)


def wanted(folder: Path) -> bytes:
    """The file, by hand."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "day", "carrier", "number", "dest", "delay", "fee"])
    sql = "SELECT id, day, carrier, number, dest, delay FROM departures WHERE carrier = 'UA' "
    with closing(sqlite3.connect(folder / "settlement.db")) as db:
        for row in db.execute(f"{sql} AND day LIKE '2013-06-%' ORDER BY id"):
            fee = Decimal("120.00") - min(Decimal(max(0, row[5] or 0)) / 4, Decimal("60.00"))
            writer.writerow([*row, fee.quantize(Decimal("0.01"))])
    return out.getvalue().encode()


def chunks_stored(folder: Path) -> int:
    """How often the extraction has stored how far it is."""
    with closing(sqlite3.connect(folder / "settlement.db", timeout=10)) as db:
        try:
            sql = "SELECT saves FROM duly_checkpoint WHERE step = 'extract' AND status = 'open'"
            found = db.execute(sql).fetchone()
        except sqlite3.OperationalError:  # there is no such table yet
            return 0
    return found[0] if found else 0


def test_killed_half_way_it_goes_on_and_the_file_is_the_same(
    tmp_path: Path, private_sshd: Any
) -> None:
    for name in ("settlement.py", "load.py", "settle.py"):
        shutil.copy(ROOT / "examples" / "nightly" / name, tmp_path)
    servers = private_sshd.environment
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DULY_")},
        "PYTHONPATH": str(ROOT / "src"),
        "SETTLEMENT_SFTP": servers["DULY_TEST_SFTP"],
        "SETTLEMENT_KEY": servers["DULY_TEST_SFTP_KEY"],
        "SETTLEMENT_KNOWN_HOSTS": servers["DULY_TEST_SFTP_KNOWN_HOSTS"],
    }
    options: dict[str, Any] = {"cwd": tmp_path, "env": environ}

    def duly(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "duly", *words]
        return subprocess.run(
            command, **options, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )

    subprocess.run([sys.executable, "load.py"], **options, timeout=LIMIT_SECONDS, check=True)
    first = subprocess.Popen([sys.executable, "-m", "duly", *START, "--wait"], **options)
    end = time.monotonic() + LIMIT_SECONDS
    while chunks_stored(tmp_path) < 3:
        assert first.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.001)  # the moment is what is looked for
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    remote = Path(unquote(urlsplit(servers["DULY_TEST_SFTP"]).path))
    assert not list(remote.glob("settlement-*"))
    second = duly(*START, "--wait", "--json")
    assert second.returncode == 0, second.stderr
    run = json.loads(second.stdout)
    assert run["status"] == "done"
    content = (remote / "settlement-UA-2013-06.csv").read_bytes()
    assert content == wanted(tmp_path)
    marker = (remote / "settlement-UA-2013-06.csv.done").read_text()
    assert sha256(content).hexdigest() in marker
    shown = json.loads(duly("batch", "show", "settlement:app", run["instance"], "--json").stdout)
    assert [one["status"] for one in shown["attempts"]] == ["done", "lost"]
    extract = next(one for one in shown["steps"] if one["step"] == "extract")
    assert extract["facts"]["resumed_at_rows"] > 0
    assert duly("batch", "verify", "settlement:app", run["instance"]).stdout == "the same\n"
    started = subprocess.run(
        [sys.executable, "settle.py", "2013-06"], **options, capture_output=True, text=True,
        timeout=LIMIT_SECONDS, check=True,
    )  # fmt: skip
    lines = started.stdout.splitlines()
    assert len(lines) == 16
    assert f"{run['instance']} done " in lines
