"""``duly init`` and ``duly demo``: the first minutes with duly."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from duly.admin.cli.output import document, json_option, write
from duly.errors import ConfigurationError

__all__ = ["demo", "init"]

_SHOP = '''"""A shop: an order is stored together with the news of it; billing hears of it once.

    duly run shop:app        runs the relay and the consumer
    python shop.py           places an order, in another terminal
"""

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert
from sqlalchemy.orm import Session

from duly import App, Event, Tx

app = App("shop")  # where its tables and its broker are: duly.toml

metadata = MetaData()
order_id = Column("id", Integer, primary_key=True)
orders = Table("orders", metadata, order_id, Column("total", Integer))
invoices = Table("invoices", metadata, Column("order_id", Integer, primary_key=True))


class OrderPlaced(Event, name="order.placed", version=1, topic="orders"):
    order_id: int
    total: int


@app.on(OrderPlaced, group="billing")
def bill(event: OrderPlaced, tx: Tx) -> None:
    tx.session.execute(insert(invoices).values(order_id=event.order_id))
    print(f"billed order {event.order_id}")


def place_order(total: int) -> int:
    engine = app.database.engine()
    metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        order_id = session.execute(insert(orders).values(total=total)).inserted_primary_key[0]
        app.publish(session, OrderPlaced(order_id=order_id, total=total))
    return order_id


if __name__ == "__main__":
    print(f"placed order {place_order(100)}")
'''

_SETTINGS = """# Settings of this App; variables such as DULY_DATABASE go before them.
app = "shop:app"
database = "sqlite:///shop.db"
broker = "embedded:///shop-broker.db"
"""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False), default=".")
@json_option
def init(*, folder: str, as_json: bool) -> None:
    """Write shop.py and duly.toml into a folder; overwrites nothing."""
    place = Path(folder)
    files = {place / "shop.py": _SHOP, place / "duly.toml": _SETTINGS}
    for file in files:
        if file.exists():
            raise ConfigurationError(f"{file} is there already", code="FILE_EXISTS")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            with file.open("x", encoding="utf-8") as new:
                new.write(text)
    except OSError as error:
        text = f"{error.filename} cannot be written: {error.strerror}"
        raise ConfigurationError(text, code="FILE_NOT_WRITABLE") from error
    if as_json:
        document({"written": [str(file) for file in files]})
    else:
        for file in files:
            write(f"wrote {file}")
        write("next: duly run shop:app, and in another terminal: python shop.py")


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(*, arguments: tuple[str, ...]) -> int:
    """Run the main job on real data, in ./duly-demo."""
    module = importlib.import_module("duly.admin.demo.main")
    code = module.main(list(arguments))
    return code if isinstance(code, int) else 0
