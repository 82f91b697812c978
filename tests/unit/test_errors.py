from __future__ import annotations

import inspect
import re

import pytest

from duly import errors
from duly.errors import BatchError, DulyError, MissingExtraError, RetryableError, error_code

CLASSES = [
    cls
    for cls in vars(errors).values()
    if inspect.isclass(cls) and issubclass(cls, DulyError) and cls.__module__ == "duly.errors"
]


def drawn_tree() -> dict[str, str]:
    """Class name -> name of its parent, from the drawing at the top of the module."""
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([ |`-]*)([A-Z][A-Za-z]+Error)\b(  |$)", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        while path and path[-1][0] >= depth:
            path.pop()
        parents[name] = path[-1][1] if path else "Exception"
        path.append((depth, name))
    return parents


def test_the_tree_drawn_at_the_top_is_the_real_one():
    assert drawn_tree() == {cls.__name__: cls.__base__.__name__ for cls in CLASSES}


def test_every_class_has_a_stable_code_of_its_own():
    codes = [cls.__dict__.get("code") for cls in CLASSES]
    assert all(isinstance(c, str) and re.fullmatch(r"[A-Z][A-Z_]+", c) for c in codes), codes
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    "cls", [c for c in CLASSES if c is not DulyError], ids=lambda c: c.__name__
)
def test_every_docstring_says_what_happened_and_what_to_do(cls):
    text = " ".join(inspect.cleandoc(cls.__doc__).split())
    assert re.search(r"[.;:] \S", text), "one sentence only: what should the reader do?"
    assert text.endswith(".")


def test_everything_is_exported_sorted():
    assert errors.__all__ == sorted(errors.__all__)
    assert set(errors.__all__) == {cls.__name__ for cls in CLASSES} | {"error_code"}


def test_the_message_has_code_detail_and_advice():
    assert str(RetryableError("disk full")) == (
        "[RETRYABLE] disk full: It failed for now. Nothing was changed; do the same again later."
    )
    assert str(RetryableError()).startswith("[RETRYABLE] It failed for now.")


def test_a_raise_site_may_give_a_more_precise_code():
    error = RetryableError("x", code="STRIPE_LOCK_TIMEOUT")
    assert error.code == "STRIPE_LOCK_TIMEOUT"
    assert str(error).startswith("[STRIPE_LOCK_TIMEOUT] x")
    assert RetryableError.code == "RETRYABLE"


def test_error_code():
    assert error_code(RetryableError()) == "RETRYABLE"
    assert error_code(KeyError("secret")) == "KeyError"


def test_errors_with_arguments_of_their_own():
    assert "pip install 'duly[rabbitmq]'" in str(MissingExtraError("pika", "rabbitmq"))
    error = BatchError(failed=iter([1, 5]))
    assert error.failed == [1, 5]
    assert "2 of the batch" in str(error)
    assert "no stock" in str(BatchError([1], "no stock"))


@pytest.mark.parametrize("cls", [c for c in CLASSES if c not in (MissingExtraError, BatchError)])
def test_errors_survive_copying_between_processes_and_threads(cls):
    import copy
    import pickle

    error = cls("detail", code="PRECISE")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is cls
        assert str(again) == str(error)


def test_errors_with_arguments_of_their_own_survive_too():
    import pickle

    for error in (MissingExtraError("pika", "rabbitmq"), BatchError([1, 2], "x")):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)
