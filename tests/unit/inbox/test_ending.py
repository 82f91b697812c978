from __future__ import annotations

import pytest

from duly.errors import (
    DatabaseUnavailableError,
    EffectArgumentsChangedError,
    OutcomeUnknownError,
    PermanentError,
    RetryableError,
    TransactionConflictError,
    UndecodableError,
)
from duly.inbox.ending import (
    EFFECT_IN_DOUBT,
    EFFECT_IS_LIVE,
    End,
    Ended,
    Ending,
    ending_of,
    error_text,
)


@pytest.mark.parametrize(
    ("error", "lost", "end"),
    [
        (Ended(Ending(End.DUPLICATE)), False, End.DUPLICATE),
        (DatabaseUnavailableError(), True, End.AGAIN),
        (DatabaseUnavailableError(), False, End.RETRY),  # another database of the handler's
        (OutcomeUnknownError(), True, End.AGAIN),
        (OutcomeUnknownError(), False, End.RETRY),
        (TransactionConflictError(), False, End.AGAIN),
        (RetryableError(code=EFFECT_IS_LIVE), False, End.LATER),
        (OutcomeUnknownError(code=EFFECT_IN_DOUBT), False, End.HELD),
        (EffectArgumentsChangedError(), False, End.HELD),
        (UndecodableError(), False, End.FAILED),
        (PermanentError(), False, End.FAILED),
        (ValueError(), False, End.RETRY),
        (KeyboardInterrupt(), False, End.RETRY),
        (SystemExit(), True, End.RETRY),
    ],
)
def test_what_an_error_means(error: BaseException, lost: bool, end: End) -> None:
    assert ending_of(error, error, connection_lost=lost).end is end


def test_the_signal_is_no_exception_that_a_handler_would_catch() -> None:
    assert not issubclass(Ended, Exception)


def test_an_error_is_stored_without_its_text() -> None:
    try:
        raise ValueError("card 4111111111111111")
    except ValueError as error:
        text = error_text(error)
    assert text.startswith("ValueError: raised at test_ending.py:")
    assert "4111" not in text
    assert error_text(ValueError("4111")) == "ValueError: raised at ?"
