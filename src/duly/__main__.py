"""``python -m duly``: the command line, as the ``duly`` command runs it."""

from __future__ import annotations

from duly.admin.cli.main import main

if __name__ == "__main__":
    main()
