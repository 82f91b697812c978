"""What a cluster's settings are worth: green, weak or red, each with its reason and its fix.

Kafka confirms what its in-sync replicas have in memory. So what carries a confirm is how many
copies must be there, and that none that is behind may become the leader; and a message is there to
be read only as long as its topic keeps it. Runs in a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka.admin import ConfigResource

from duly.brokers.kafka.control import Control
from duly.brokers.kafka.settings import Settings
from duly.errors import ConfigurationError
from duly.ports import Finding, Severity

__all__ = ["inspect", "of_topic", "tls"]

HOUR = 3_600_000
DAY = 24 * HOUR
BATCH_BYTES_LEAST = 1_048_588  # Kafka's own default, which the producer's batches fit into

_COPIES_FIX = "Run three brokers; make topics with replication.factor=3, min.insync.replicas=2."


def inspect(control: Control, topics: Iterable[str]) -> list[Finding]:
    """What is to be said of the cluster and of these topics. Raises as ``Control.metadata``."""
    metadata = control.metadata()
    brokers = len(metadata.brokers)
    text = f"Kafka, {brokers} broker{'' if brokers == 1 else 's'}"
    facts = {"brokers": str(brokers), "cluster": str(metadata.cluster_id)}
    findings = [Finding("KAFKA_SERVER", Severity.GREEN, text, "", facts)]
    copies = {
        name: min((len(p.replicas) for p in metadata.topics[name].partitions.values()), default=0)
        for name in topics
        if name in metadata.topics and metadata.topics[name].error is None
    }
    if not copies:
        return [*findings, _of_new_topics(control.settings, brokers)]
    try:
        settings = _settings_of(control, sorted(copies))
    except ConfigurationError as error:
        fix = "Grant DescribeConfigs on the topics."
        text = f"the topics' settings cannot be read: {error.code}"
        return [*findings, Finding("KAFKA_TOPIC_SETTINGS", Severity.WEAK, text, fix)]
    verdicts: dict[str, tuple[Finding, list[str]]] = {}
    for name, given in settings.items():
        for finding in of_topic(given, copies[name]):
            verdicts.setdefault(finding.message, (finding, []))[1].append(name)
    return findings + [_named(finding, names) for finding, names in verdicts.values()]


def _settings_of(control: Control, names: Sequence[str]) -> dict[str, dict[str, str]]:
    asked = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    answers = control.ask(
        "topics' settings",
        lambda: control.client.describe_configs(asked, request_timeout=control.timeout),
    )
    return {
        resource.name: {k: str(v.value) for k, v in answer.items()}
        for resource, answer in answers.items()
    }


def of_topic(given: Mapping[str, str], copies: int) -> list[Finding]:
    """The verdicts on one topic. given: its settings. copies: of its least replicated partition."""
    findings = [_of_copies(int(given.get("min.insync.replicas", "1")), copies)]
    if given.get("unclean.leader.election.enable") == "true":
        text = "a replica that is behind may become leader: confirmed messages may be lost"
        fix = "Set unclean.leader.election.enable=false."
        findings.append(Finding("KAFKA_UNCLEAN_ELECTION", Severity.RED, text, fix))
    findings.append(_of_retention(given))
    if int(given.get("max.message.bytes", BATCH_BYTES_LEAST)) < BATCH_BYTES_LEAST:
        text = f"max.message.bytes is {given['max.message.bytes']}: batches may be refused"
        fix = f"Set max.message.bytes to {BATCH_BYTES_LEAST} or more."
        findings.append(Finding("KAFKA_MESSAGE_BYTES", Severity.WEAK, text, fix))
    return findings


def _of_copies(insync: int, copies: int) -> Finding:
    code = "KAFKA_COPIES"
    if copies >= 3 and insync >= 2:
        text = f"{copies} copies, a confirm means at least {insync}"
        return Finding(code, Severity.GREEN, text)
    if copies < 2:
        text = "one copy: gone with its broker's disk, and a power cut may take what was confirmed"
    elif insync < 2:
        text = f"{copies} copies, but a confirm may mean one, in the memory of one machine"
    else:
        text = f"{copies} copies and {insync} must be there: one broker down stops publishing"
    return Finding(code, Severity.WEAK, text, _COPIES_FIX)


def _of_retention(given: Mapping[str, str]) -> Finding:
    code = "KAFKA_RETENTION"
    if "compact" in given.get("cleanup.policy", "delete"):
        text = "compacted: a message goes when its key gets another one, read or not"
        return Finding(code, Severity.RED, text, "Set cleanup.policy=delete.")
    milliseconds = int(given.get("retention.ms", "-1"))
    shown = f"{milliseconds / HOUR:g} h"
    fix = "Set retention.ms to a week or more, longer than any group may be away."
    if 0 <= milliseconds < HOUR:
        return Finding(code, Severity.RED, f"unread messages are deleted after {shown}", fix)
    if 0 <= milliseconds < 7 * DAY:
        return Finding(code, Severity.WEAK, f"unread messages are deleted after {shown}", fix)
    if int(given.get("retention.bytes", "-1")) >= 0:
        text = f"unread messages are deleted beyond {given['retention.bytes']} bytes a partition"
        return Finding(code, Severity.WEAK, text, "Set retention.bytes=-1.")
    kept = "for ever" if milliseconds < 0 else f"for {shown}, read or not"
    return Finding(code, Severity.GREEN, f"messages are kept {kept}")


def _of_new_topics(settings: Settings, brokers: int) -> Finding:
    copies = settings.replication or min(3, brokers)
    if copies >= 3:
        text = f"topics made here get {copies} copies, a confirm means at least 2"
        return Finding("KAFKA_COPIES", Severity.GREEN, text)
    text = f"topics made here get {copies} cop{'y' if copies == 1 else 'ies'}"
    return Finding("KAFKA_COPIES", Severity.WEAK, text, _COPIES_FIX)


def _named(finding: Finding, names: Sequence[str]) -> Finding:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return Finding(finding.code, finding.severity, f"{shown}: {finding.message}", finding.fix)


def tls(settings: Settings) -> Finding:
    """Whether others can read along, or pose as the cluster."""
    code = "KAFKA_TLS"
    if settings.tls and settings.verified:
        return Finding(code, Severity.GREEN, "TLS, the servers' certificates are verified")
    if settings.tls:
        fix = "Remove verify=verify_none from the URL; name the CA with cacertfile=."
        return Finding(code, Severity.RED, "TLS without verification: anybody can pose as it", fix)
    if settings.local:
        return Finding(code, Severity.GREEN, "no TLS, the servers are on this machine")
    fix = "Use kafkas://."
    return Finding(code, Severity.WEAK, "no TLS: login and messages can be read on the way", fix)
