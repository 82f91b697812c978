"""The servers that tests need, and servers of a test's own.

``make services`` runs ``python -m tools.services start``; tests use what is exported here.  One
file per server; each knows how to find, configure, start, recognise and end its own.  Standard
library only.
"""

from __future__ import annotations

from tools.services.catalogue import load_environment
from tools.services.private import (
    PrivateServer,
    ServerMissingError,
    start_private_activemq,
    start_private_kafka,
    start_private_mariadb,
    start_private_nats,
    start_private_postgres,
    start_private_rabbitmq,
    start_private_redis,
    start_private_sshd,
)
from tools.services.processes import ServerFailedError

__all__ = [
    "PrivateServer",
    "ServerFailedError",
    "ServerMissingError",
    "load_environment",
    "start_private_activemq",
    "start_private_kafka",
    "start_private_mariadb",
    "start_private_nats",
    "start_private_postgres",
    "start_private_rabbitmq",
    "start_private_redis",
    "start_private_sshd",
]
