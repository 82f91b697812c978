"""What a route - the topic of events, the queue of a command - asks of the relay.

Owns the policies by topic, with their defaults; what they mean is carried out by the relay and the
lane reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from duly.errors import ConfigurationError
from duly.kernel.backoff import Retry
from duly.kernel.names import check_name

__all__ = ["Route", "Routes"]


@dataclass(frozen=True, kw_only=True)
class Route:
    """How messages of one topic or queue are relayed.

    retry: of a message that the broker refuses. on_exhausted: after its last attempt its key goes
    on (``skip``) or waits for an operator (``block``). order: ``key`` keeps the commit order of
    each key; ``pipelined`` gives that up for speed. require_groups: with at least one name here an
    event that nobody is bound to waits instead of being settled as unrouted.
    """

    retry: Retry = Retry()
    on_exhausted: Literal["skip", "block"] = "skip"
    order: Literal["key", "pipelined"] = "key"
    require_groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.on_exhausted not in ("skip", "block") or self.order not in ("key", "pipelined"):
            raise ConfigurationError(
                "a route takes on_exhausted='skip' or 'block', order='key' or 'pipelined'"
            )
        self.retry.refuse_on("a route")


class Routes:
    """The routes of one App; a topic without one has the defaults. pipelined: the topics that give
    up order.
    """

    def __init__(self) -> None:
        self.pipelined: set[str] = set()
        self._by_topic: dict[str, Route] = {}
        self._default = Route()

    def add(self, topic: str, route: Route) -> None:
        """Declare a route. Raises ConfigurationError when the topic has another one already."""
        check_name(topic, "topic")
        if self._by_topic.setdefault(topic, route) != route:
            raise ConfigurationError(f"the route of {topic!r} is declared twice, differently")
        if route.order == "pipelined":
            self.pipelined.add(topic)

    def of(self, topic: str) -> Route:
        """The route of a topic."""
        return self._by_topic.get(topic, self._default)
