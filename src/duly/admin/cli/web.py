"""``duly web``: serve the REST service of an App.

Owns the server process only: what it answers is ``duly.admin.web``.  It listens on this machine
alone unless told otherwise; put a proxy with TLS before it for others.
"""

from __future__ import annotations

from pathlib import Path

import click

from duly.admin.cli.arguments import app_argument
from duly.admin.cli.output import EXIT_OK, note
from duly.admin.cli.target import require_app
from duly.errors import MissingExtraError

__all__ = ["web"]


@click.command()
@app_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8400, show_default=True)
@click.option(
    "--tokens",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="A file with a line ACTOR TOKEN for each who may use it; readable by its owner only.",
)
def web(*, app: str | None, host: str, port: int, tokens: Path) -> int:
    """Serve the REST service on batch runs, until SIGTERM or Ctrl-C."""
    from duly.admin.web import make_service, read_tokens
    from duly.outbox.schema import Schema

    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("uvicorn", "web") from error
    found = require_app(app)
    service = make_service(found, read_tokens(tokens))
    Schema(found.database, found.name).start()
    note(f"{found.name} answers at http://{host}:{port}/openapi.json")
    uvicorn.run(service, host=host, port=port, log_level="warning", access_log=False)
    return EXIT_OK
