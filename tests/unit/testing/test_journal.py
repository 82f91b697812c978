"""The journal: whole lines, in order, also from a process that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from duly.testing.journal import Journal, now, read_journal


def test_facts_come_back_in_order_with_time_and_pid(tmp_path: Path) -> None:
    began = now()
    with Journal(tmp_path / "j") as journal:
        journal.append("open", ids=["a"])
        journal.append("close", ids=["a"])
    facts = list(read_journal(tmp_path / "j"))
    assert [(f["what"], f["ids"], f["pid"]) for f in facts] == [
        ("open", ["a"], os.getpid()),
        ("close", ["a"], os.getpid()),
    ]
    assert began - 0.001 <= facts[0]["at"] <= facts[1]["at"] <= now() + 0.001


def test_a_reopened_journal_goes_on(tmp_path: Path) -> None:
    for n in range(3):
        with Journal(tmp_path / "j") as journal:
            journal.append("n", n=n)
    assert [f["n"] for f in read_journal(tmp_path / "j")] == [0, 1, 2]


def test_what_was_appended_survives_the_kill_of_its_process(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from duly.testing.journal import Journal\n"
        "journal = Journal(sys.argv[1])\n"
        "for n in range(5): journal.append('n', n=n)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "j")], timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [f["n"] for f in read_journal(tmp_path / "j")] == [0, 1, 2, 3, 4]


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")

    def write(name: int) -> None:
        for n in range(20):
            journal.append("n", name=name, n=n, pad="x" * 500)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    journal.close()
    facts = list(read_journal(tmp_path / "j"))
    for name in range(4):
        assert [f["n"] for f in facts if f["name"] == name] == list(range(20))


def test_a_line_cut_short_is_left_out_and_damage_is_not(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.append("whole")
    with path.open("ab") as file:
        file.write(b'{"what":"cut')
    assert [f["what"] for f in read_journal(path)] == ["whole"]
    with path.open("ab") as file:
        file.write(b'\n{"what":"next"}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        list(read_journal(path))


def test_no_file_is_an_empty_journal(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "nothing")) == []
