"""Servers that come as jars: fetched once by Maven with all that they need, kept beside the data.

The invariant: a folder of jars is there whole or not at all; it is filled under another name and
renamed, so that an interrupted fetch is fetched again.  Maven checks every file's checksum and
keeps its own cache, so that a second checkout or a cleared ``.services`` costs seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from tools.services import folders
from tools.services.processes import ServerFailedError

__all__ = ["can_fetch", "fetch", "fetched", "java"]

FETCH_SECONDS = 400
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>duly.tests</groupId><artifactId>{name}</artifactId><version>1</version>
<dependencies>{dependencies}</dependencies>
</project>
"""


def java() -> str | None:
    """The Java runtime; None when there is none."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin" if home else None) or shutil.which("java")


def can_fetch() -> bool:
    """Whether Maven is here to fetch, and Java to run what it fetched."""
    return java() is not None and shutil.which("mvn") is not None


def fetched(name: str) -> Path | None:
    """The folder of jars of an earlier ``fetch``; None when there is none."""
    folder = folders.home_for("jars") / name
    return folder if folder.is_dir() else None


def fetch(
    name: str, artifacts: Sequence[str], *, arrange: Callable[[Path], None] | None = None
) -> Path:
    """A folder with the jars of ``group:artifact:version`` and all that they need at run time; of
    ``group:artifact:version:type`` the file of that type.

    name: of the folder; it changes when a version does. arrange: puts the files where the server
    looks for them. Idempotent. Raises ServerFailedError.
    """
    done = fetched(name)
    if done is not None:
        return done
    work = folders.home_for("jars") / f"{name}.part"
    shutil.rmtree(work, ignore_errors=True)  # of a fetch that was interrupted
    work.mkdir()
    (work / "pom.xml").write_text(POM.format(name=name, dependencies=_listed(artifacts)))
    print(f"fetching {', '.join(artifacts)} ...", flush=True)
    command = ["mvn", "--batch-mode", "--quiet", "-f", str(work / "pom.xml"), COPY]
    command += [f"-DoutputDirectory={work}", "-DincludeScope=runtime"]
    try:
        ran = subprocess.run(
            command, cwd=work, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailedError(f"Maven could not fetch {name}: {error}") from error
    if ran.returncode or not any(work.glob("*.jar")):
        said = "\n".join(line for line in ran.stdout.splitlines() if "ERROR" in line)
        raise ServerFailedError(f"Maven could not fetch {name}:\n{said[-500:]}")
    if arrange is not None:
        arrange(work)
    return work.rename(work.with_name(name))


def _listed(artifacts: Sequence[str]) -> str:
    out = ""
    for artifact in artifacts:
        group, name, version, kind = map(escape, f"{artifact}:jar".split(":")[:4])
        out += f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId>"
        out += f"<version>{version}</version><type>{kind}</type></dependency>"
    return out
