"""The worker: the process with relay and consumers, which the demo kills.

Owns the one thing a service of yours would not have: a self-destruction between the gateway's
answer and its record, armed by the driver.  All else is the App's own blocking start.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading

from duly.admin.demo.gateway import SmsGateway
from duly.admin.demo.handlers import build_app
from duly.admin.demo.setup import read_setup
from duly.kernel import failpoints
from duly.observe.logging import log_fact

__all__ = ["main"]


def main() -> None:
    """Run until SIGTERM, until the driver is gone, or until the armed kill."""
    setup = read_setup(sys.stdin)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    app = build_app(
        database=setup.database, broker=setup.broker, gateway=SmsGateway(setup.gateway_port)
    )
    app.hooks.add(log_fact)
    threading.Thread(target=_obey, name="life-line", daemon=True).start()
    app.run()


def _obey() -> None:
    """Each line is the number of an effect to die at; the end is the end."""
    for line in sys.stdin:
        _arm(int(line))
    os.kill(os.getpid(), signal.SIGTERM)


def _arm(nth: int) -> None:
    """Die at the n-th effect from now, when the gateway has answered and nothing is recorded."""
    calls = itertools.count(1)

    def die(name: str) -> None:
        if name == failpoints.EFFECT_CALLED and next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.arm(die)


if __name__ == "__main__":
    main()
