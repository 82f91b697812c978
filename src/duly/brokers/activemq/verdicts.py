"""What ``check`` says of an ActiveMQ server: what survives a crash, and what can be lost or read.

Owns the verdicts. A receipt means that the server has written the message to its journal; whether
it has also waited for the disk, and whether there is a journal at all, are settings that its
management tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from duly.brokers.activemq.settings import Settings
from duly.ports import Finding, Severity

__all__ = ["judge"]

# Tried with 62 kills, and left nothing behind; 2.44 leaves one of ten.  Between them: not tried.
PROVEN = (2, 57)


def judge(
    settings: Settings,
    broker: Mapping[str, Any],
    address: Mapping[str, Any],
    *,
    stranded: Mapping[str, int],
) -> list[Finding]:
    """The findings. broker: attributes of the server. address: what holds for our addresses.
    stranded: messages under way to nobody, by queue.
    """
    found = [_tls(settings), _server(str(broker.get("version", "?"))), _durability(broker)]
    return [*found, *_addresses(settings, address), *_stranded(stranded)]


def _server(version: str) -> Finding:
    code, facts = "ACTIVEMQ_SERVER", {"version": version}
    server = f"ActiveMQ Artemis {version}"
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers >= PROVEN:
        return Finding(code, Severity.GREEN, server, "", facts)
    text = f"{server} may keep a message of a killed receiver to itself until it is restarted"
    return Finding(code, Severity.WEAK, text, "Run 2.57 or newer.", facts)


def _tls(settings: Settings) -> Finding:
    code = "ACTIVEMQ_TLS"
    if settings.tls and settings.verified:
        return Finding(code, Severity.GREEN, "TLS, the server's certificate is verified")
    if settings.tls:
        fix = "Remove verify=verify_none from the URL; name the CA with cacertfile=."
        return Finding(code, Severity.RED, "TLS without verification: anybody can pose as it", fix)
    if settings.local:
        return Finding(code, Severity.GREEN, "no TLS, the server is on this machine")
    fix = "Use stomp+tls://."
    return Finding(code, Severity.WEAK, "no TLS: login and messages can be read on the way", fix)


def _durability(broker: Mapping[str, Any]) -> Finding:
    """Whether a confirmed message survives a loss of power."""
    code = "ACTIVEMQ_DURABILITY"
    names = ("persistenceEnabled", "journalSyncTransactional", "journalSyncNonTransactional")
    facts = {name: str(broker.get(name)).lower() for name in names}
    if broker.get("persistenceEnabled") is not True:
        fix = "Set persistence-enabled to true in broker.xml."
        text = "nothing is written to disk: a restart of the server loses every message"
        return Finding(code, Severity.RED, text, fix, facts)
    off = [name for name in names[1:] if broker.get(name) is not True]
    if off:
        fix = "Set journal-sync-transactional and journal-sync-non-transactional to true."
        text = f"a receipt does not wait for the disk ({', '.join(off)} off): a loss of power loses"
        return Finding(code, Severity.WEAK, text, fix, facts)
    text = "each receipt waits until the journal is on the disk"
    return Finding(code, Severity.GREEN, text, "", facts)


def _addresses(settings: Settings, address: Mapping[str, Any]) -> Iterator[Finding]:
    """What somebody has set on our addresses by which messages vanish."""
    match = f"{settings.prefix}.#"
    if address.get("addressFullMessagePolicy") == "DROP":
        text = f"addresses {match} drop messages when they are full, and still send the receipt"
        fix = "Set address-full-policy to PAGE, BLOCK or FAIL."
        yield Finding("ACTIVEMQ_DROPS", Severity.RED, text, fix)
    for name in ("expiryDelay", "maxExpiryDelay"):
        if int(address.get(name, -1)) >= 0:
            text = f"addresses {match} forget messages that nobody has read yet ({name})"
            yield Finding("ACTIVEMQ_EXPIRES", Severity.RED, text, f"Remove {name} for {match}.")


def _stranded(queues: Mapping[str, int]) -> Iterator[Finding]:
    """What the server owes its receivers: when one is killed it ends the connection twice at the
    same time, and the oldest message of a receiver may be undone by neither.
    """
    if queues:
        some = ", ".join(f"{count} of {queue}" for queue, count in sorted(queues.items())[:5])
        text = f"messages are under way to nobody ({some}): their receivers were killed"
        fix = "Restart the server: it delivers them again then, and not before."
        facts = {queue: str(count) for queue, count in queues.items()}
        yield Finding("ACTIVEMQ_STRANDED", Severity.WEAK, text, fix, facts)
