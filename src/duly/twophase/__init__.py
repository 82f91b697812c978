"""Global transactions: two-phase commit over the App's database and its participants.

Owns the public names of this room; ``app.global_transaction()`` gives objects of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duly.twophase.transaction import AsyncGlobalTransaction, GlobalTransaction

__all__ = ["AsyncGlobalTransaction", "GlobalTransaction"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("duly.twophase.transaction"), name)  # it needs SQLAlchemy
