from __future__ import annotations

import inspect
import logging

from duly.observe import facts
from duly.observe.facts import Fact

ALL = [getattr(facts, name) for name in facts.__all__ if name != "Fact"]
# What could hold a payload or a secret has no place in a fact.
FORBIDDEN = {"payload", "body", "headers", "error", "exception", "text", "key", "password", "value"}


def sample(cls: type[Fact]) -> Fact:
    """A fact of every field filled in."""
    made = {"str": "a", "int": 3, "float": 0.5, "float | None": 2.0, "tuple[str, ...]": ("a", "b")}
    made["int | None"] = 7
    return cls(**{name: made[kind] for name, kind in inspect.get_annotations(cls).items()})


def test_the_list_is_complete_and_sorted():
    defined = [
        name
        for name, cls in vars(facts).items()
        if inspect.isclass(cls) and issubclass(cls, Fact) and cls.__module__ == facts.__name__
    ]
    assert facts.__all__ == sorted(defined)


def test_every_fact_has_a_name_of_its_own_and_a_docstring():
    names = [cls.name for cls in ALL]
    assert len(set(names)) == len(names)
    assert all(name.count(".") == 1 for name in names)
    assert all(cls.__doc__ for cls in ALL)


def test_no_fact_has_room_for_a_payload():
    for cls in ALL:
        assert not FORBIDDEN & set(cls.__struct_fields__)


def test_no_field_collides_with_a_log_record():
    record = logging.makeLogRecord({})
    taken = set(vars(record)) | {"message", "asctime", "taskName", "fact"}
    for cls in ALL:
        assert not taken & set(cls.__struct_fields__)


def test_facts_are_frozen_and_small():
    fact = sample(facts.Relayed)
    assert not hasattr(fact, "__dict__")
    assert fact == sample(facts.Relayed)
    assert hash(fact) == hash(sample(facts.Relayed))
