"""When the peers are installed, and what is said when they cannot be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import peers


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was installed; nothing is."""
    asked: list[list[str]] = []

    def make_venv(place: Path) -> None:
        (place / "bin").mkdir(parents=True, exist_ok=True)
        (place / "bin" / "python").touch()

    monkeypatch.setattr(peers, "make_venv", make_venv)
    monkeypatch.setattr(peers, "install_pins", lambda lines, hashed, place: asked.append(lines))
    return asked


def test_peers_are_installed_once(installs: list[list[str]], tmp_path: Path) -> None:
    first, second = peers.peers_python(tmp_path), peers.peers_python(tmp_path)
    assert first == second == tmp_path / "bin" / "python"
    assert len(installs) == 1
    assert any(line.startswith("txoutbox==") for line in installs[0])


def test_other_pins_or_a_half_made_place_are_installed_again(
    installs: list[list[str]], tmp_path: Path
) -> None:
    peers.peers_python(tmp_path)
    (tmp_path / "pins").write_text("txoutbox==0.0.1")
    peers.peers_python(tmp_path)
    (tmp_path / "pins").unlink()
    peers.peers_python(tmp_path)
    assert len(installs) == 3


@pytest.mark.parametrize(
    "error",
    [
        subprocess.CalledProcessError(1, ["pip"]),
        subprocess.TimeoutExpired(["pip"], 900),
        SystemExit("this Python has no ensurepip"),
        PermissionError("read-only"),
    ],
)
def test_what_cannot_be_installed_is_said_and_tried_again(
    installs: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(peers, "install_pins", fail)
        with pytest.raises(peers.PeersMissingError, match=r"ended|pip|ensurepip|read-only"):
            peers.peers_python(tmp_path)
    peers.peers_python(tmp_path)
    assert len(installs) == 1
