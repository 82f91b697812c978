"""Makes ``.venv``: the locked packages, checked by hash, and this checkout on top of them.

Runs with the machine's own Python and only the standard library.  Invariant: nothing is installed
that ``constraints.txt`` does not pin; on a platform whose files it does not cover the versions
still hold, only the hashes are given up, and a line says so.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PIP_TIMEOUT_SECONDS = 900
COVERED_PYTHONS = ((3, 11), (3, 12), (3, 13))
COVERED_MACHINES = {"linux": ("x86_64", "aarch64"), "darwin": ("arm64", "x86_64")}


def covered() -> bool:
    """Whether the hashes in constraints.txt cover this Python and this platform."""
    if sys.platform == "linux" and platform.libc_ver()[0] != "glibc":
        return False
    return (
        sys.implementation.name == "cpython"
        and sys.version_info[:2] in COVERED_PYTHONS
        and platform.machine() in COVERED_MACHINES.get(sys.platform, ())
    )


def without_hashes(lines: list[str]) -> list[str]:
    """The same pins, each on one line."""
    return [line.removesuffix(" \\") for line in lines if not line.startswith("    --hash")]


def sections(text: str) -> dict[str, list[str]]:
    """The lines of constraints.txt by section."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("# --- "):
            title = line.removeprefix("# --- ")
        elif line and not line.startswith("#"):
            found.setdefault(title, []).append(line)
    return found


def make_venv(place: Path = VENV) -> None:
    """Create a virtual environment, or mend one whose Python is gone."""
    python = place / "bin" / "python"
    if python.exists() and not subprocess.run([python, "-c", "import pip"], check=False).returncode:
        return
    try:
        import ensurepip  # noqa: F401  # only whether it is there
    except ImportError:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise SystemExit(
            f"this Python has no ensurepip, so it cannot make a virtual environment; "
            f"on Debian or Ubuntu run: apt-get install python{version}-venv"
        ) from None
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True, timeout=120)


def pip_install(*arguments: str, place: Path = VENV) -> None:
    """Run pip in an environment; its own message is shown when it fails."""
    command = [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += ["install", "--quiet", *arguments]
    subprocess.run(command, check=True, timeout=PIP_TIMEOUT_SECONDS)


def install_pins(lines: list[str], hashed: bool, place: Path = VENV) -> None:
    """Install exactly these pins; source archives build with the tools of the first section."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines if hashed else without_hashes(lines)) + "\n")
        file.flush()
        checks = ["--require-hashes"] if hashed else []
        pip_install(*checks, "--no-deps", "--no-build-isolation", "-r", file.name, place=place)


def main() -> None:
    """Make the environment; safe to run again."""
    hashed = covered()
    if not hashed:
        print("constraints.txt has no hashes for this platform: installing its versions unchecked")
    print("installing into .venv ...", flush=True)
    make_venv()
    parts = sections((ROOT / "constraints.txt").read_text())
    install_pins(parts["build"], hashed)
    install_pins(parts["run"], hashed)
    pip_install("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    subprocess.run(
        [VENV / "bin" / "python", "-m", "pip", "check"], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    try:
        main()
    except subprocess.SubprocessError as error:
        raise SystemExit(f"the environment could not be made: {error}") from None
