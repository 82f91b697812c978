"""Who hears the facts of one App.

Owns the list of hooks and the promise to the code that emits: ``emit`` never raises and never waits
for anything but the hooks themselves, and with no hooks costs one empty loop.  A hook that raises
is logged once per hook and type of fact - a broken exporter must not fill the disk.  Hooks are
called in the thread that emitted, in the order in which they were added; whoever needs another
thread brings a queue.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeAlias

from duly.observe.facts import Fact

__all__ = ["Hook", "Hooks"]

Hook: TypeAlias = Callable[[Fact], None]

_log = logging.getLogger("duly.observe")


class Hooks:
    """The hooks of one App. Safe to use from any thread."""

    def __init__(self) -> None:
        self._hooks: tuple[Hook, ...] = ()
        self._lock = threading.Lock()
        self._complained: set[tuple[int, type[Fact]]] = set()

    def add(self, hook: Callable[[Fact], None]) -> Callable[[], None]:
        """Call ``hook`` for every fact from now on; returns a function that removes it again
        (idempotent).
        """
        with self._lock:
            self._hooks = (*self._hooks, hook)
        added = [hook]  # emptied by the first removal: the same hook may have been added twice

        def remove() -> None:
            with self._lock:
                for once in added:
                    rest = list(self._hooks)
                    rest.remove(once)
                    self._hooks = tuple(rest)
                    if once not in rest:
                        self._complained = {c for c in self._complained if c[0] != id(once)}
                added.clear()

        return remove

    @property
    def listening(self) -> bool:
        """Whether anybody hears; spares a hot path the making of a fact that nobody does."""
        return bool(self._hooks)

    def emit(self, fact: Fact) -> None:
        """Tell every hook. Never raises an Exception of a hook; KeyboardInterrupt and SystemExit
        pass.
        """
        for hook in self._hooks:
            try:
                hook(fact)
            except Exception:  # noqa: BLE001  # an observer must not disturb the observed
                self._complain(hook, fact)

    def _complain(self, hook: Hook, fact: Fact) -> None:
        complaint = (id(hook), type(fact))
        with self._lock:
            if complaint in self._complained:
                return
            self._complained.add(complaint)
        shown = getattr(hook, "__qualname__", type(hook).__qualname__)
        _log.exception(
            "hook %s failed on %s; told once",
            shown,
            fact.name,
            extra={"code": "HOOK_FAILED", "fact": fact.name},
        )
