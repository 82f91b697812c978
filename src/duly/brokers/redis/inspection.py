"""What ``check`` and ``doctor`` say of a Redis server.

Owns the verdicts: what a confirmed message is worth by the server's own settings, what evicts keys,
what a failover loses, which rights the login lacks. Invariant: what cannot be read is never taken
for good. Reads only; the rights are tried on a key that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from redis import exceptions

from duly.brokers.redis.link import CALL_SECONDS, Link
from duly.brokers.redis.settings import Settings
from duly.ports import Finding, Severity

__all__ = ["durability", "eviction", "inspect", "missing_rights", "replication", "tls", "version"]

GREEN, WEAK, RED = Severity.GREEN, Severity.WEAK, Severity.RED
LEAST = (6, 2)
FULL_SHARE = 0.85
_APPEND = "Set appendonly yes and appendfsync always in redis.conf."


def inspect(link: Link, settings: Settings) -> list[Finding]:
    """Every finding. Raises what the server's answers are mapped to."""
    info = _info(link)
    found = [tls(settings), version(info)]
    if info.get("cluster_enabled") == "1" or info.get("redis_mode") == "cluster":
        fix = "Name a server that is no part of a cluster."
        found.append(Finding("REDIS_CLUSTER", RED, "Redis Cluster is not supported", fix))
    config = _config(link)
    facts = info | config
    found += [durability(facts), eviction(facts), replication(facts)]
    return [*found, *missing_rights(*_refused(link, settings.prefix))]


def _info(link: Link) -> dict[str, str]:
    lines = link.ask("INFO").decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and line[0] != "#")


def _config(link: Link) -> dict[str, str]:
    """What CONFIG GET says; nothing where that is not allowed, as on many hosted servers."""
    names = ("appendonly", "appendfsync", "maxmemory-policy", "maxmemory")
    answers = link.ask_all([("CONFIG", "GET", n) for n in names], timeout_seconds=CALL_SECONDS)
    lists = [answer for answer in answers if isinstance(answer, list) and len(answer) == 2]
    return {name.decode(): value.decode() for name, value in lists}


# --- verdicts -------------------------------------------------------------------------------------
def tls(settings: Settings) -> Finding:
    """Whether others can read along or pose as the server."""
    code = "REDIS_TLS"
    if settings.tls and settings.verified:
        return Finding(code, GREEN, "TLS, the server's certificate is verified")
    if settings.tls:
        fix = "Remove verify=verify_none from the URL; name the CA with cacertfile=."
        return Finding(code, RED, "TLS without verification: anybody can pose as it", fix)
    if settings.local:
        return Finding(code, GREEN, "no TLS, the server is on this machine")
    return Finding(
        code, WEAK, "no TLS: login and messages can be read on the way", "Use rediss://."
    )


def version(info: Mapping[str, str]) -> Finding:
    """Whether the server knows the commands, and is one in which others cannot run code by Lua."""
    text = info.get("valkey_version") or info.get("redis_version", "?")
    facts = {"version": text}
    name = "Valkey" if "valkey_version" in info else "Redis"
    number = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
    if number < LEAST:
        fix = "Use Redis 6.2 or newer, or Valkey."
        return Finding("REDIS_SERVER", RED, f"{name} {text} is too old", fix, facts)
    return Finding("REDIS_SERVER", GREEN, f"{name} {text}", "", facts)


def durability(facts: Mapping[str, str]) -> Finding:
    """What a confirmed message survives."""
    code = "REDIS_DURABILITY"
    shown = {k: facts[k] for k in ("appendonly", "appendfsync", "aof_enabled") if k in facts}
    if facts.get("aof_enabled", "0") != "1" and facts.get("appendonly") != "yes":
        text = "appendonly no: confirmed messages are in memory only and gone with the server"
        return Finding(code, RED, text, _APPEND, shown)
    if facts.get("aof_last_write_status", "ok") != "ok":
        return Finding(code, RED, "the append-only file cannot be written", "Free its disk.", shown)
    fsync = facts.get("appendfsync", "")
    if fsync == "always":
        return Finding(
            code, GREEN, "appendfsync always: a confirmed message is on the disk", "", shown
        )
    if fsync == "everysec":
        text = "appendfsync everysec: up to two seconds of confirmed messages may go with a crash"
        return Finding(code, WEAK, text, "Set appendfsync always in redis.conf.", shown)
    if fsync == "no":
        text = "appendfsync no: confirmed messages are on the disk when the system sees fit"
        return Finding(code, RED, text, _APPEND, shown)
    text = "the append-only file is on; how often it is written to disk cannot be read"
    return Finding(code, WEAK, text, "Allow this login CONFIG|GET, or ask who runs it.", shown)


def eviction(facts: Mapping[str, str]) -> Finding:
    """Whether a full server deletes messages or refuses them."""
    code = "REDIS_EVICTION"
    policy = facts.get("maxmemory-policy") or facts.get("maxmemory_policy", "?")
    limit = int(facts.get("maxmemory", "0") or 0)
    used = int(facts.get("used_memory", "0") or 0)
    shown = {"maxmemory-policy": policy, "maxmemory": str(limit), "used_memory": str(used)}
    fix = "Set maxmemory-policy noeviction."
    if policy.startswith("allkeys"):
        text = f"maxmemory-policy {policy}: a full server deletes messages"
        return Finding(code, RED if limit else WEAK, text, fix, shown)
    if policy.startswith("volatile"):
        text = f"maxmemory-policy {policy}: a full server deletes the leases of ordered groups"
        return Finding(code, WEAK, text, fix, shown)
    if policy != "noeviction":
        return Finding(code, WEAK, "maxmemory-policy cannot be read", fix, shown)
    if limit and used > FULL_SHARE * limit:
        text = f"{used / limit:.0%} of maxmemory is used; a full server takes no messages"
        return Finding(code, WEAK, text, "Raise maxmemory, or lower retention= in the URL.", shown)
    return Finding(code, GREEN, "noeviction: a full server refuses messages", "", shown)


def replication(facts: Mapping[str, str]) -> Finding:
    """What the server is, and what a failover loses."""
    code = "REDIS_REPLICATION"
    role, count = facts.get("role", "?"), facts.get("connected_slaves", "0")
    shown = {"role": role, "connected_replicas": count}
    if role == "slave":
        fix = "Name the primary in the URL."
        return Finding(code, RED, "this is a replica: it takes no messages", fix, shown)
    if role != "master":
        return Finding(code, WEAK, "its role cannot be read", "Allow this login INFO.", shown)
    if count == "0":
        return Finding(code, GREEN, "a primary without replicas", "", shown)
    text = "replicas get messages after they are confirmed: a failover loses the newest"
    fix = "Keep the disk of the primary, or use a broker with quorums for what must survive."
    return Finding(code, WEAK, text, fix, shown)


# --- rights ---------------------------------------------------------------------------------------
def _refused(link: Link, prefix: str) -> tuple[list[str], list[str]]:
    """The commands that this login may not use, for publishing and for reading."""
    key, one = f"{prefix}rights", "0-1"
    publishing = [("XADD", key, "NOMKSTREAM", "*", "a", "b"), ("MULTI",), ("EXEC",)]
    reading: list[tuple[str | int, ...]] = [
        ("SREM", key, "a"),
        ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", key, ">"),
        ("XREAD", "COUNT", 1, "STREAMS", key, one),
        ("XACK", key, "g", one),
        ("XAUTOCLAIM", key, "g", "c", 1000, "0-0", "COUNT", 1),
        ("XCLAIM", key, "g", "c", 1000, one),
        ("XPENDING", key, "g"),
        ("XGROUP", "CREATE", key, "g", "$"),
        ("XINFO", "GROUPS", key),
        ("XTRIM", key, "MINID", one),
        ("PEXPIRE", key, 1000),
        ("GET", key),
        ("DEL", key),
        ("TIME",),
        ("EVAL", "return 1", 0),
    ]
    answers = link.ask_all([*publishing, *reading], timeout_seconds=CALL_SECONDS)
    names = [str(parts[0]) for parts in [*publishing, *reading]]
    refused = [isinstance(one, exceptions.NoPermissionError) for one in answers]
    missing = [name if no else "" for name, no in zip(names, refused, strict=True)]
    split = len(publishing)
    return [n for n in missing[:split] if n], [n for n in missing[split:] if n]


def missing_rights(publishing: list[str], reading: list[str]) -> list[Finding]:
    """What follows from refused commands."""
    code = "REDIS_RIGHTS"
    fix = "Give the login the rights listed in the wire format page (ACL SETUSER)."
    if publishing:
        text = f"this login may not publish: {', '.join(publishing)} refused"
        return [Finding(code, RED, text, fix)]
    if reading:
        text = f"this login may publish but not read for groups: {', '.join(reading)} refused"
        return [Finding(code, WEAK, text, fix)]
    return [Finding(code, GREEN, "the login has every right it needs")]
