"""What ``check`` says of a NATS server: what survives a crash, and what can be read on the way.

Owns the verdicts. JetStream confirms when a majority of the replicas has written a message, not
when it is on disk: a server that is killed loses nothing, a machine that loses power loses what was
written since the last sync, by default up to two minutes, unless other replicas have it.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from duly.brokers.nats.settings import Settings
from duly.ports import Finding, Severity

__all__ = ["judge", "read_illness", "read_monitor"]

MONITOR_SECONDS = 3.0
_SAFE_VERSION = (2, 12, 7)  # older ones have published security holes
_REPLICAS = 3


def judge(
    settings: Settings,
    info: Mapping[str, Any],
    *,
    streams: Sequence[Mapping[str, Any]],
    monitor: Mapping[str, Any] | str | None,
    illness: str = "",
) -> list[Finding]:
    """The findings. info: the server's INFO. streams: the ``config`` of those under our prefix.
    monitor: the answer of its endpoint, or why there is none; None when the URL names none.
    illness: what its health check complains of."""
    return [
        _tls(settings),
        _server(info),
        _sync(settings, streams, monitor),
        *_health(illness),
        *_streams(streams),
    ]


def read_monitor(settings: Settings) -> Mapping[str, Any] | str | None:
    """What the monitoring endpoint says of JetStream, or why it says nothing. Blocks."""
    if not settings.monitor:
        return None
    try:
        found = _read(settings, "jsz?config=true")
    except (OSError, ValueError) as error:
        return f"port {settings.monitor} did not answer: {error}"
    return found if isinstance(found, dict) else "its answer is no object"


def read_illness(settings: Settings) -> str:
    """What the server's own health check complains of, empty when it is well or not asked. Blocks.

    Only here a stream tells that it cannot write: to publishers it does not answer any more.
    """
    try:
        if settings.monitor:
            _read(settings, "healthz")
    except urllib.error.HTTPError as error:
        return error.read(1_000).decode(errors="replace")
    except (OSError, ValueError):
        pass  # whether it can be read at all is said by ``read_monitor``
    return ""


def _read(settings: Settings, page: str) -> Any:
    host, _ = settings.hosts[0]
    url = f"http://[{host}]" if ":" in host else f"http://{host}"
    place = f"{url}:{settings.monitor}/{page}"
    with urllib.request.urlopen(place, timeout=MONITOR_SECONDS) as answer:  # noqa: S310  # http
        return json.loads(answer.read(1_000_000))


def _tls(settings: Settings) -> Finding:
    code = "NATS_TLS"
    if settings.tls and settings.verified:
        return Finding(code, Severity.GREEN, "TLS, the server's certificate is verified")
    if settings.tls:
        fix = "Remove verify=verify_none from the URL; name the CA with cacertfile=."
        return Finding(code, Severity.RED, "TLS without verification: anybody can pose as it", fix)
    if settings.local:
        return Finding(code, Severity.GREEN, "no TLS, the server is on this machine")
    fix = "Use nats+tls://."
    return Finding(code, Severity.WEAK, "no TLS: login and messages can be read on the way", fix)


def _server(info: Mapping[str, Any]) -> Finding:
    text = str(info.get("version", "?"))
    facts = {"version": text, "max_payload": str(info.get("max_payload", "?"))}
    if info.get("cluster"):
        facts["cluster"] = str(info["cluster"])
    numbers = tuple(int(n) for n in re.findall(r"\d+", text)[:3])
    if numbers >= _SAFE_VERSION:
        return Finding("NATS_SERVER", Severity.GREEN, f"NATS {text}", "", facts)
    fix = f"Upgrade to {'.'.join(map(str, _SAFE_VERSION))} or newer."
    message = f"NATS {text} has published security holes"
    return Finding("NATS_SERVER", Severity.WEAK, message, fix, facts)


def _sync(
    settings: Settings,
    streams: Sequence[Mapping[str, Any]],
    monitor: Mapping[str, Any] | str | None,
) -> Finding:
    """Whether a confirmed message survives a loss of power."""
    code = "NATS_DURABILITY"
    copies = min((s.get("num_replicas", 1) for s in streams), default=settings.replicas)
    config = monitor.get("config", {}) if isinstance(monitor, Mapping) else {}
    if config.get("sync_always"):
        text = f"{copies} replica(s), each write is synced before the confirm"
        return Finding(code, Severity.GREEN, text, "", {"replicas": str(copies)})
    if copies >= _REPLICAS:
        text = f"{copies} replicas: a confirm means that a majority has it in memory or on disk"
        return Finding(code, Severity.GREEN, text, "", {"replicas": str(copies)})
    fix = "Set jetstream.sync_interval to always, or use replicas=3 in the URL and a cluster."
    if monitor is None:
        text = "one server, and its sync_interval was not read"
        fix += " Name the monitoring port with monitor=8222 to have it read."
    elif isinstance(monitor, str):
        text = f"one server, and its sync_interval could not be read: {monitor}"
    else:
        seconds = config.get("sync_interval", 0) / 1e9
        text = f"one server that syncs every {seconds:.0f} s: power lost, up to that much is lost"
    return Finding(code, Severity.WEAK, text, fix, {"replicas": str(copies)})


def _health(illness: str) -> Iterator[Finding]:
    if illness:
        fix = "Give its disk room and restart it: a stream that could not write takes no more."
        text = f"the server is not well: {ascii(illness)[:300]}"
        yield Finding("NATS_HEALTH", Severity.RED, text, fix)


def _streams(streams: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """What somebody else has set on our streams."""
    for config in streams:
        name = config.get("name", "?")
        if config.get("storage") != "file":
            text = f"stream {name} is kept in memory: a restart of the server loses it"
            yield Finding(
                "NATS_STREAM_MEMORY", Severity.RED, text, "Make it anew with file storage."
            )
        if config.get("persist_mode") == "async":
            text = f"stream {name} confirms before it has written"
            yield Finding("NATS_STREAM_ASYNC", Severity.RED, text, "Remove its persist_mode.")
        if limit := _limit(config):
            text = f"stream {name} drops messages that nobody has read yet ({limit})"
            fix = "Remove the limit, or let it refuse new messages: discard=new."
            yield Finding("NATS_STREAM_DROPS", Severity.RED, text, fix)


def _limit(config: Mapping[str, Any]) -> str:
    """The setting by which a stream forgets unread messages; empty when there is none."""
    if config.get("max_age", 0) > 0:
        return "max_age"
    if config.get("discard", "old") == "old":
        for name in ("max_msgs", "max_bytes", "max_msgs_per_subject"):
            if config.get(name, -1) > 0:
                return name
    return ""
