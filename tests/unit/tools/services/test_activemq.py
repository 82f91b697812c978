"""What is written for an ActiveMQ before it runs."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from tools.services.activemq import ActiveMQ


def test_every_acceptor_is_on_this_machine_and_rights_differ(tmp_path: Path) -> None:
    server = ActiveMQ.create(tmp_path, Path("/usr/bin/java"))
    root = ET.parse(tmp_path / "etc" / "broker.xml").getroot()  # written just now
    acceptors = [e.text or "" for e in root.iter() if e.tag.endswith("acceptor")]
    places = [re.match(r"tcp://127\.0\.0\.1:(\d+)\?protocols=([A-Z,]+);", a) for a in acceptors]
    assert [(int(found[1]), found[2]) for found in places if found] == [
        (server.port, "STOMP"), (server.core, "CORE"), (server.tls, "CORE,STOMP"),
    ]  # fmt: skip
    users = (tmp_path / "users.properties").read_text().split()
    assert sorted(line.partition("=")[0] for line in users) == ["duly", "reader", "writer"]
    assert "PRIVATE KEY" in (tmp_path / "tls.pem").read_text()
    assert not server.alive()
