"""What is written for a Kafka before it runs."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

from tools.services import kafka
from tools.services.kafka import Kafka


def test_every_listener_is_on_this_machine_and_has_a_port_of_its_own(tmp_path: Path) -> None:
    server = Kafka.create(tmp_path, Path("/usr/bin/java"))
    text = (tmp_path / "server.properties").read_text()
    listeners = re.search(r"^listeners=(.*)$", text, re.MULTILINE)
    assert listeners is not None
    places = listeners[1].split(",")
    assert len(places) == len({place.rpartition(":")[2] for place in places}) == 5
    assert all("://127.0.0.1:" in place for place in places)
    assert f"PROXIED://127.0.0.1:{server.through}" in text, "where it says it is"
    assert (tmp_path / "data" / "meta.properties").read_text().count("\n") == 4
    assert "PRIVATE KEY" in (tmp_path / "tls.pem").read_text()
    assert not server.alive()


def test_something_else_at_the_port_is_not_taken_for_a_kafka() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            wire, _ = listener.accept()
            with wire:
                wire.recv(100)
                wire.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        assert not kafka.answers(listener.getsockname()[1])
        thread.join(10)
