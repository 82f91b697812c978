"""``python -m tools.services start|stop``: what `make services` and `make services-stop` run.

A server that cannot be had is one line and its tests skip; with ``CI=true`` it is a failure.
"""

from __future__ import annotations

import os
import sys

from tools.services import catalogue


def main(arguments: list[str]) -> int:
    """Do what is asked; 1 when a server is missing and CI wants it."""
    if arguments == ["stop"]:
        catalogue.stop(print)
        return 0
    if arguments != ["start"]:
        print("usage: python -m tools.services start|stop", file=sys.stderr)
        return 2
    missing = catalogue.start(print)
    for name, why in missing.items():
        print(f"{name:10} missing: {why}", file=sys.stderr)
    return 1 if missing and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
