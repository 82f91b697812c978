"""The house rules, applied to every file of the checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.tidy.exceptions import ALLOWED
from tests.tidy.rules import HOUSE, PUBLIC, TESTS, Rule, Violation, parse

ROOT = Path(__file__).resolve().parents[2]
FOLDERS: dict[str, tuple[Rule, ...]] = {
    "src/duly": HOUSE + PUBLIC,
    "tools": HOUSE,
    "bench": HOUSE,
    "tests": TESTS,
}


def broken() -> Iterator[Violation]:
    """Every violation in every file, the allowed ones too."""
    for folder, rules in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            source = parse(file.relative_to(ROOT).as_posix(), file.read_text())
            for rule in rules:
                yield from rule(source)


def test_every_file_keeps_the_house_rules() -> None:
    found = [v for v in broken() if (v.rule, v.where) not in ALLOWED]
    assert not found, "\n".join(["", *(f"{v.where}: {v.rule}: {v.detail}" for v in found)])


def test_no_exception_outlives_its_need() -> None:
    needed = {(v.rule, v.where) for v in broken()}
    assert not set(ALLOWED) - needed
    assert all(len(reason) > 10 for reason in ALLOWED.values())


def test_the_folders_are_not_empty() -> None:
    counted = {folder: len(list((ROOT / folder).rglob("*.py"))) for folder in ("src/duly", "tools")}
    assert min(counted.values()) > 10, counted


def test_the_pins_name_no_address_and_are_hashed() -> None:
    for file in (ROOT / "constraints.txt", ROOT / "tools" / "services" / "constraints.txt"):
        lines = file.read_text().splitlines()
        assert not [line for line in lines if "://" in line or line.startswith("-")]
        pins = [number for number, line in enumerate(lines) if "==" in line]
        assert pins
        assert all(lines[number + 1].startswith("    --hash=sha256:") for number in pins)
