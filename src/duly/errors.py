"""The error tree, ordered by what the caller should do.

    DulyError
    |-- ConfigurationError        fix the program or its settings, then start again
    |   |-- UnsafeSettingError        ... or say why it is wanted: allow_unsafe="reason"
    |   |-- MissingExtraError         ... a driver is not installed
    |   |-- SchemaError               ... the tables are missing, older or someone else's
    |   |-- NotInTransactionError     ... publish was called where nothing would commit it
    |   |-- HostKeyError              ... a server is not known to be the one that is meant
    |   |-- NotObservableError        ... the tables kept do not show it
    |   `-- CrossesThreadsError       ... a session or connection would be used by two threads
    |-- RetryableError            the same call may succeed later
    |   |-- DatabaseUnavailableError
    |   |-- BrokerUnavailableError
    |   |-- CallRefusedError          ... its breaker is open, or its places are taken
    |   |-- PeerUnavailableError      ... it could not be reached, or is too busy
    |   |-- FileTargetUnavailableError
    |   |-- SinkUnavailableError
    |   |-- SinkLostError             ... a copy was emptied or put back, and is made anew
    |   |-- TransactionConflictError  ... deadlock, lock timeout, serialization failure
    |   |-- BackgroundFullError       ... the pool has no place
    |   `-- BackgroundClosedError     ... the pool drains
    |-- PermanentError            the same call will never succeed
    |   |-- NotSerializableError
    |   |-- UndecodableError
    |   |-- PayloadTooLargeError
    |   |-- InvalidNameError
    |   |-- InvalidHeaderError
    |   |-- InvalidKeyError
    |   |-- UnknownTypeError
    |   |-- EffectInsideTransactionError
    |   |-- EffectArgumentsChangedError
    |   |-- TransactionMisuseError
    |   |-- FileTargetError           ... a place of delivery does not take the file
    |   |-- SinkRefusedError          ... a copy does not take this row
    |   |-- AbsentValueError          ... the source's log did not carry it
    |   `-- BatchError                ... a batch handler names its culprits
    |-- OutcomeUnknownError       it may have happened: ask, repeat with the same key, or hold
    |   `-- BackgroundTimeoutError    ... a call in the background is past its timeout
    |   `-- CallDeadlineError         ... cut off at its deadline
    |-- StaleLeaseError           somebody else owns it now: drop what you hold
    |-- GapError                  history was lost: a person decides
    `-- OperatorError             an operator's verb does not apply
        |-- NotFoundError
        `-- WrongStatusError
            `-- RunActiveError      ... an attempt at a batch run is under way

A class's docstring is its message: the first sentence says what happened, the rest what to do.
``code`` is stable: logs, the command line and the docs use the same word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import cleandoc
from typing import Any, ClassVar

__all__ = [
    "AbsentValueError",
    "BackgroundClosedError",
    "BackgroundFullError",
    "BackgroundTimeoutError",
    "BatchError",
    "BrokerUnavailableError",
    "CallDeadlineError",
    "CallRefusedError",
    "ConfigurationError",
    "CrossesThreadsError",
    "DatabaseUnavailableError",
    "DulyError",
    "EffectArgumentsChangedError",
    "EffectInsideTransactionError",
    "FileTargetError",
    "FileTargetUnavailableError",
    "GapError",
    "HostKeyError",
    "InvalidHeaderError",
    "InvalidKeyError",
    "InvalidNameError",
    "MissingExtraError",
    "NotFoundError",
    "NotInTransactionError",
    "NotObservableError",
    "NotSerializableError",
    "OperatorError",
    "OutcomeUnknownError",
    "PayloadTooLargeError",
    "PeerUnavailableError",
    "PermanentError",
    "RetryableError",
    "RunActiveError",
    "SchemaError",
    "SinkLostError",
    "SinkRefusedError",
    "SinkUnavailableError",
    "StaleLeaseError",
    "TransactionConflictError",
    "TransactionMisuseError",
    "UndecodableError",
    "UnknownTypeError",
    "UnsafeSettingError",
    "WrongStatusError",
    "error_code",
]


class DulyError(Exception):
    """Something duly was asked to do could not be done."""

    code: ClassVar[str] = "DULY_ERROR"

    def __init__(self, detail: str = "", *, code: str = "") -> None:
        self.detail = detail
        if code:
            self.code = code  # type: ignore[misc]  # a more precise word for one raise site
        super().__init__(detail)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with args again; one that cannot hangs a process pool.
        return _restored, (type(self), self.args, vars(self))

    def __str__(self) -> str:
        what_to_do = " ".join(cleandoc(type(self).__doc__ or "").split())
        return (
            f"[{self.code}] {self.detail}: {what_to_do}"
            if self.detail
            else f"[{self.code}] {what_to_do}"
        )


class ConfigurationError(DulyError):
    """The program or its settings are wrong. Fix what is named here and start again."""

    code = "CONFIGURATION"


class UnsafeSettingError(ConfigurationError):
    """A setting would let messages be lost or doubled. Change it, or accept it in code with
    allow_unsafe="reason".
    """

    code = "UNSAFE_SETTING"


class MissingExtraError(ConfigurationError):
    """A driver is not installed. Run the pip command named here."""

    code = "MISSING_EXTRA"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not importable; run: pip install 'duly[{extra}]'")


class SchemaError(ConfigurationError):
    """duly's tables do not fit this program. Run `duly db status MODULE:APP`, then `duly db upgrade
    MODULE:APP`.
    """

    code = "SCHEMA"


class NotInTransactionError(ConfigurationError):
    """There is no open transaction that could commit this message. Call it inside `with
    session.begin():`.
    """

    code = "NOT_IN_TRANSACTION"


class HostKeyError(ConfigurationError):
    """The server is not known to be the one that is meant, and nothing was sent. Ask its owner for
    the fingerprint, then put the key into the known_hosts file.
    """

    code = "HOST_KEY"


class NotObservableError(ConfigurationError):
    """This cannot be seen from the tables that are kept. Keep history, or name a group this App
    handles.
    """

    code = "NOT_OBSERVABLE"


class CrossesThreadsError(ConfigurationError):
    """A session, connection or loaded object of the caller would be used in another thread or task.
    Pass the id, and open a session inside the function.
    """

    code = "CROSSES_THREADS"


class RetryableError(DulyError):
    """It failed for now. Nothing was changed; do the same again later."""

    code = "RETRYABLE"


class DatabaseUnavailableError(RetryableError):
    """The database cannot be reached or is not taking writes. duly retries; check the server and
    `duly doctor`.
    """

    code = "DATABASE_UNAVAILABLE"


class BrokerUnavailableError(RetryableError):
    """The broker cannot be reached. Messages stay in the outbox and no attempt is used up; check
    the server.
    """

    code = "BROKER_UNAVAILABLE"


class FileTargetUnavailableError(RetryableError):
    """The place of delivery cannot be reached, or takes no bytes now. The run goes on from its last
    checkpoint; check the server.
    """

    code = "FILE_TARGET_UNAVAILABLE"


class SinkUnavailableError(RetryableError):
    """The place that is kept in step cannot be reached, or takes nothing now. The stream waits and
    tries again; check the server.
    """

    code = "SINK_UNAVAILABLE"


class SinkLostError(RetryableError):
    """The place that is kept in step has less than it was given: it was emptied, or put back to an
    earlier state. Nothing need be done, it is filled anew.
    """

    code = "SINK_LOST"


class CallRefusedError(RetryableError):
    """The call was not made: its breaker is open or all its places are taken. Do without it, or try
    again later.
    """

    code = "CALL_REFUSED"


class PeerUnavailableError(RetryableError):
    """The peer cannot be reached, or says that it is too busy; it has done nothing. Try again
    later.
    """

    code = "PEER_UNAVAILABLE"
    retry_after_seconds: float | None = None  # what the peer asked for


class TransactionConflictError(RetryableError):
    """Another transaction was in the way and this one was rolled back. Run the whole transaction
    again.
    """

    code = "TRANSACTION_CONFLICT"


class BackgroundFullError(RetryableError):
    """The pool has no place for the call, and nothing was begun. Try again, or give it more queue,
    or choose another on_full.
    """

    code = "BACKGROUND_FULL"


class BackgroundClosedError(RetryableError):
    """The pool is ending and takes nothing new. Nothing was begun."""

    code = "BACKGROUND_CLOSED"


class PermanentError(DulyError):
    """The same call will never succeed. Change the input or the code."""

    code = "PERMANENT"


class NotSerializableError(PermanentError):
    """The message cannot be written as JSON. Use numbers, text, dates, decimals and lists; no NaN,
    no cycles.
    """

    code = "NOT_SERIALIZABLE"


class UndecodableError(PermanentError):
    """The bytes received do not fit the declared message type. Fix the sender, or edit and replay
    the message.
    """

    code = "UNDECODABLE"


class PayloadTooLargeError(PermanentError):
    """The message is larger than the cap. Store the body elsewhere and send a reference, or raise
    payload_bytes_max.
    """

    code = "PAYLOAD_TOO_LARGE"


class InvalidNameError(PermanentError):
    """A name does not fit the rule for names. Use letters, digits, '.', '_' and '-', 1 to 120
    characters.
    """

    code = "INVALID_NAME"


class InvalidHeaderError(PermanentError):
    """A header cannot be sent. Use at most 64 headers of printable text, without CR, LF or NUL, and
    no 'ce_' names.
    """

    code = "INVALID_HEADER"


class InvalidKeyError(PermanentError):
    """Order cannot be kept by this key. Use text of 1 to 1,024 bytes without NUL."""

    code = "INVALID_KEY"


class UnknownTypeError(PermanentError):
    """This message type is not known to this App. Register the class, or deploy the version that
    knows it.
    """

    code = "UNKNOWN_TYPE"


class EffectInsideTransactionError(PermanentError):
    """tx.effect was called after the transaction had opened. Call the outside world first, then
    touch tx.session.
    """

    code = "EFFECT_INSIDE_TRANSACTION"


class EffectArgumentsChangedError(PermanentError):
    """An effect was recorded with other arguments for this message. A person decides; see `duly
    inbox show`.
    """

    code = "EFFECT_ARGUMENTS_CHANGED"


class TransactionMisuseError(PermanentError):
    """The handler ended duly's transaction itself. Remove commit, rollback and close; duly commits
    after you return.
    """

    code = "TRANSACTION_MISUSE"


class FileTargetError(PermanentError):
    """The place of delivery does not take this file, and what it holds was left as it is. Mend what
    is named here, then restart the run.
    """

    code = "FILE_TARGET"


class SinkRefusedError(PermanentError):
    """The place that is kept in step does not take this row. The stream waits there: mend the
    target or the projection and start again, or leave the transaction out by `duly cdc skip`.
    """

    code = "SINK_REFUSED"


class AbsentValueError(PermanentError):
    """The source's log did not carry this value. Test it with ``is ABSENT``, or let the source log
    whole rows (PostgreSQL: REPLICA IDENTITY FULL).
    """

    code = "ABSENT_VALUE"


class BatchError(PermanentError):
    """A batch handler reports which of its messages failed; the others are handled again without
    them.
    """

    code = "BATCH_PARTLY_FAILED"

    def __init__(self, failed: Iterable[int | object], detail: str = "") -> None:
        self.failed: Sequence[int | object] = list(failed)
        super().__init__(detail or f"{len(self.failed)} of the batch failed")


class OutcomeUnknownError(DulyError):
    """It was asked for and no answer came: it may have happened. Ask, repeat with the same key, or
    hold.
    """

    code = "OUTCOME_UNKNOWN"


class BackgroundTimeoutError(OutcomeUnknownError):
    """A call in the background is past its timeout. A thread cannot be ended from outside: give its
    driver a timeout, too.
    """

    code = "BACKGROUND_TIMEOUT"


class CallDeadlineError(OutcomeUnknownError):
    """The call was cut off at its deadline and may have been done. Ask the peer, or repeat it with
    the same key.
    """

    code = "CALL_DEADLINE"


class StaleLeaseError(DulyError):
    """The lease on this work was lost to another process. Drop the work; its new owner does it."""

    code = "LEASE_LOST"


class GapError(DulyError):
    """A part of the history is gone. Nothing goes on by itself; decide with the named command."""

    code = "GAP"


class OperatorError(DulyError):
    """An operator's command was not carried out. Nothing was changed."""

    code = "OPERATOR"


class NotFoundError(OperatorError):
    """There is nothing with this id. List what there is, then try again."""

    code = "NOT_FOUND"


class WrongStatusError(OperatorError):
    """This verb does not apply in the status the row has now. Show the row, then choose another
    verb.
    """

    code = "WRONG_STATUS"


class RunActiveError(WrongStatusError):
    """An attempt at this run is under way. Let it end, or stop or kill it first."""

    code = "RUN_ACTIVE"

    def __init__(
        self,
        detail: str = "",
        *,
        code: str = "",
        owner: str = "",
        age_seconds: float | None = None,
    ) -> None:
        # owner: host and process of the attempt. age_seconds: since it was last heard of, None
        # where nobody holds the run any more.
        super().__init__(detail, code=code)
        self.owner, self.age_seconds = owner, age_seconds


def _restored(cls: type[DulyError], args: tuple[Any, ...], state: dict[str, Any]) -> DulyError:
    error = cls.__new__(cls, *args)
    vars(error).update(state)
    return error


def error_code(error: BaseException) -> str:
    """The stable code of an error of ours, else the name of its class."""
    return error.code if isinstance(error, DulyError) else type(error).__name__
