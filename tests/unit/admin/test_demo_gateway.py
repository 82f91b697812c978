"""The gateway: one message per key, however often it is asked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from duly.admin.demo.gateway import GatewayError, GatewayServer, SmsGateway


@pytest.fixture
def server() -> Iterator[GatewayServer]:
    with GatewayServer() as started:
        yield started


def test_a_repeated_key_is_answered_from_memory(server: GatewayServer) -> None:
    gateway = SmsGateway(server.port)
    first = gateway.send(7, 130, idempotency_key="a")
    other = gateway.send(8, 150, idempotency_key="b")
    assert gateway.send(7, 130, idempotency_key="a") == first != other
    record = server.record()
    assert record.sent == [("a", 7), ("b", 8)]
    assert record.asked == {"a": 2, "b": 1}
    assert record.repeated == 1
    assert server.sent == 2


def test_another_key_for_the_same_flight_sends_again(server: GatewayServer) -> None:
    gateway = SmsGateway(server.port)
    gateway.send(7, 130, idempotency_key="a")
    gateway.send(7, 130, idempotency_key="b")
    assert [flight for _, flight in server.record().sent] == [7, 7]


def test_many_threads_with_one_key_send_once(server: GatewayServer) -> None:
    gateway = SmsGateway(server.port)
    with ThreadPoolExecutor(8) as pool:
        keys = [f"k{n % 5}" for n in range(100)]
        receipts = list(pool.map(lambda key: gateway.send(1, 120, idempotency_key=key), keys))
    assert len(set(receipts)) == len(server.record().sent) == 5
    assert sum(server.record().asked.values()) == 100


def test_a_call_without_a_key_is_refused_and_counted_nowhere(server: GatewayServer) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("POST", "/messages", '{"flight_id": 1}')
    assert connection.getresponse().status == 400
    connection.close()
    assert server.record() == ({}, [])


def test_a_huge_body_is_refused(server: GatewayServer) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("POST", "/messages", "x" * 20_000, {"Idempotency-Key": "a"})
    assert connection.getresponse().status == 400
    connection.close()
    assert server.sent == 0


def test_a_gateway_that_is_not_there_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: calls are refused
        gateway = SmsGateway(taken.getsockname()[1])
        with pytest.raises(GatewayError):
            gateway.send(1, 120, idempotency_key="a")


def test_it_listens_on_the_loopback_interface_only(server: GatewayServer) -> None:
    assert server._http.server_address[0] == "127.0.0.1"
