"""What is written for an OpenSearch before it runs."""

from __future__ import annotations

import json
import re
import stat
import zipfile
from pathlib import Path

import pytest

from tools.services import folders, maven, search
from tools.services.search import Search

ROOT = Path(__file__).resolve().parents[4]
JARS = ("opensearch-2.jar", "netty-buffer-4.jar", "transport-netty4-client-2.jar", "httpcore-4.jar")


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Maven has fetched, laid out."""
    folder = tmp_path / "opensearch"
    folder.mkdir()
    for jar in JARS:
        (folder / jar).touch()
    with zipfile.ZipFile(folder / "opensearch-security-2.zip", "w") as plugin:
        plugin.writestr("opensearch-security-2.jar", "")
        plugin.writestr("config/config.yml", "_meta: {}")
        plugin.writestr("config/internal_users.yml", "admin: {hash: of a password known to all}")
    monkeypatch.setattr(folders, "unprivileged_user", lambda: None)
    monkeypatch.setattr(
        maven, "fetch", lambda name, artifacts, *, arrange: arrange(folder) or folder
    )
    return search.distribution()


def test_every_part_is_where_the_server_looks_for_it(laid_out: Path) -> None:
    found = {str(path.relative_to(laid_out)) for path in laid_out.rglob("*.jar")}
    assert found == {
        "lib/opensearch-2.jar",
        "modules/reindex/httpcore-4.jar",
        "modules/transport-netty4/netty-buffer-4.jar",
        "modules/transport-netty4/transport-netty4-client-2.jar",
        "plugins/opensearch-security/opensearch-security-2.jar",
    }
    for name in search.MODULES:
        told = (laid_out / "modules" / name / "plugin-descriptor.properties").read_text()
        assert f"name={name}\n" in told
        assert f"opensearch.version={search.VERSION}\n" in told


def test_it_is_on_this_machine_only_and_knows_none_but_our_logins(
    laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "distribution", lambda: laid_out)
    home = tmp_path / "home"
    home.mkdir()
    server = Search.create(home, Path("/usr/bin/java"))
    settings = (home / "config" / "opensearch.yml").read_text()
    assert "network.host: 127.0.0.1\n" in settings
    assert f"http.port: {server.port}\n" in settings
    assert f"path.data: {home}/data\n" in settings
    users = (home / "config" / "opensearch-security" / "internal_users.yml").read_text()
    assert [line.partition(":")[0] for line in users.splitlines()[1:]] == [
        "duly", "feeder", "reader",
    ]  # fmt: skip
    assert stat.S_IMODE((home / "config" / "key.pem").stat().st_mode) == 0o600
    assert server.certificate.exists()
    assert not server.alive()


def test_a_sink_is_tested_with_the_rights_that_are_documented() -> None:
    page = (ROOT / "docs" / "howto" / "feed-a-cache-or-index.md").read_text()
    block = re.search(r"```json\n(.*?)```", page, re.DOTALL)
    assert block is not None
    role = json.loads(block[1])
    (index,) = role["index_permissions"]
    feeder = search.ROLES.partition("reader:")[0]
    assert f"cluster_permissions: [{', '.join(role['cluster_permissions'])}]" in feeder
    assert re.findall(r"^    - (.*)$", feeder, re.MULTILINE) == index["allowed_actions"]
