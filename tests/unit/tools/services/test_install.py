"""Installing leaves nothing behind but packages, and starts nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.services import install
from tools.services.processes import ServerFailedError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get that writes down how it was called and whether the policy stood in its way."""
    monkeypatch.setattr(install, "POLICY", tmp_path / "sbin" / "policy-rc.d")
    monkeypatch.setattr(install, "NO_CLUSTER", tmp_path / "etc" / "createcluster.d" / "duly.conf")
    (tmp_path / "sbin").mkdir()
    apt = tmp_path / "apt-get"
    apt.write_text(
        f'#!/bin/sh\n{tmp_path}/sbin/policy-rc.d; echo "$? $*" >>{tmp_path}/calls\n'
        f"cat {tmp_path}/etc/createcluster.d/duly.conf >>{tmp_path}/calls\n"
        'case "$*" in *no-such*) echo "E: Unable to locate package"; exit 100;; esac\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_packages_are_installed_behind_a_policy_that_is_removed_again(machine: Path) -> None:
    install.apt(["postgresql", "pgbouncer"])
    calls = (machine / "calls").read_text().splitlines()
    assert [line.split()[0] for line in calls[::2]] == ["101", "101"]
    assert set(calls[1::2]) == {"create_main_cluster = false"}
    assert calls[2].endswith("install --yes --no-install-recommends postgresql pgbouncer")
    assert not install.POLICY.exists()
    assert not (machine / "etc").exists()


def test_a_policy_that_was_there_stays_as_it_is(machine: Path) -> None:
    install.POLICY.write_text("#!/bin/sh\nexit 104\n")
    install.POLICY.chmod(0o755)
    install.apt(["postgresql"])
    assert install.POLICY.read_text() == "#!/bin/sh\nexit 104\n"
    assert (machine / "calls").read_text().startswith("104 ")


def test_a_folder_that_a_package_filled_stays(machine: Path) -> None:
    with install._placed(install.NO_CLUSTER, "x", 0o644):
        (install.NO_CLUSTER.parent / "theirs.conf").write_text("y")
    assert [one.name for one in install.NO_CLUSTER.parent.iterdir()] == ["theirs.conf"]


def test_a_failure_shows_apt_s_own_words_and_cleans_up(machine: Path) -> None:
    with pytest.raises(ServerFailedError, match="Unable to locate package"):
        install.apt(["no-such-package"])
    assert not install.POLICY.exists()


def test_apt_is_for_root_only(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert install.can_apt()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert not install.can_apt()
