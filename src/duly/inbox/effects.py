"""Calls to the outside world that are not made twice.

Theory of operation.  A call cannot join the transaction, so it is written down around it: *intent*
(committed), call, *result* (committed).  A handler that runs again gets the recorded result.  What
stands in the row when it does:

    state  | its holder          | what is done
    -------+---------------------+----------------------------------------------------------
    done   |                     | the recorded result is given back; no call
    failed |                     | the call raised; repeated under the same provider key
    intent | calls just now      | wait (``effect_wait_seconds``), then later; never a call
    intent | gone: nobody knows  | asked (reconcile), repeated (keyed, repeatable), or held

The invariants: nothing is called before the intent is committed, and no intent is committed for a
message that is done; an intent changes hands by compare-and-set; what a caller gets is always the
decoded form of what is stored.  "Not found" is final only when the caller is known dead: its lease
is over *and* its hard deadline has passed.

``Effect.script`` is the one description of this; it yields what it wants (``Ask``, ``Invoke``,
``Wait``), and ``run`` and ``run_async`` do it.
"""

from __future__ import annotations

import hashlib
import inspect
import time
import typing
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, NamedTuple

import msgspec

from duly.errors import (
    ConfigurationError,
    EffectArgumentsChangedError,
    NotSerializableError,
    OutcomeUnknownError,
    RetryableError,
    StaleLeaseError,
)
from duly.inbox.context import ConsumeContext
from duly.inbox.ending import EFFECT_IN_DOUBT, EFFECT_IS_LIVE, End, Ended, Ending
from duly.inbox.identity import Identity
from duly.kernel import failpoints
from duly.kernel.names import check_name
from duly.kernel.outcomes import NotFound
from duly.observe.facts import EffectCalled, EffectInDoubt, EffectReused, Fact
from duly.ports import Statement, Steps
from duly.runtime.desk import AsyncDesk, Desk

__all__ = ["Effect", "NotFound", "run", "run_async"]

POLL_SECONDS = 0.2


class Ask(NamedTuple):
    """Run statements in a transaction of their own."""

    steps: Steps[Any]


class Invoke(NamedTuple):
    """Call a function of the user's."""

    function: Callable[[], Any]


class Wait(NamedTuple):
    """Sleep."""

    seconds: float


Script = Generator[Ask | Invoke | Wait, Any, Any]


class _Standing(NamedTuple):
    """A row as it was found. over: its hard deadline has passed. alive: its process still holds its
    lease.
    """

    state: str
    arguments: str
    result: bytes | None
    holder: str
    over: bool
    alive: bool


@dataclass(kw_only=True, eq=False)
class Effect:
    """One step of one message. ended: told how the message has ended when it cannot be handled
    further.
    """

    context: ConsumeContext
    identity: Identity
    message_id: str
    ended: Callable[[Ending], None]
    step: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    key_as: str | None = None
    reconcile: Callable[[str], Any] | None = None
    repeatable: bool = False
    not_done: tuple[type[Exception], ...] = ()
    result: Any = None
    provider_key: str = field(init=False)
    arguments: str = field(init=False)

    def __post_init__(self) -> None:
        check_name(self.step, "effect step")
        self.provider_key = "duly-" + _digest([*self.identity.where.values(), self.step])[:40]
        self.arguments = _digest([self.args, dict(self.kwargs)])
        self.result = self.result if self.result is not None else _returned(self.function)

    # --- the script -------------------------------------------------------------------------------
    def script(self) -> Script:
        """Give the result, recorded or new. Raises what the function raises, and the errors of this
        module's table.
        """
        waited = 0.0
        while True:
            holder = f"{self.context.process()}#{token_hex(8)}"
            standing = yield Ask(self._intend(holder))
            if standing is None:
                return (yield from self._call(holder))
            if standing.arguments != self.arguments:
                self.ended(Ending(End.HELD, f"{EffectArgumentsChangedError.code}: {self.step}"))
                raise EffectArgumentsChangedError(self.step)
            if standing.state == "done":
                self._emit(EffectReused)
                return self._decoded(standing.result or b"null")
            if standing.state == "failed":
                if (yield Ask(self._take(holder, standing))):
                    return (yield from self._call(holder))
            elif self._is_live(standing):
                waited += yield from self._wait(waited)
            else:
                done, value = yield from self._resolve(holder, standing)
                if done:
                    return value

    def _wait(self, waited: float) -> Generator[Wait, Any, float]:
        if waited >= self.context.effect_wait_seconds:
            self.ended(Ending(End.LATER, f"{EFFECT_IS_LIVE}: {self.step}"))
            raise RetryableError(f"{self.step} is being called elsewhere", code=EFFECT_IS_LIVE)
        yield Wait(POLL_SECONDS)
        return POLL_SECONDS

    def _is_live(self, standing: _Standing) -> bool:
        if standing.holder in self.context.calling:
            return True
        return standing.alive and standing.holder.partition("#")[0] != self.context.process()

    def _resolve(self, holder: str, standing: _Standing) -> Generator[Any, Any, tuple[bool, Any]]:
        """An intent whose caller is gone. (False, None): somebody else resolves it; look again."""
        if self.reconcile is not None:
            return (yield from self._ask_provider(holder, standing))
        if self.key_as is not None or self.repeatable:
            if not (yield Ask(self._take(holder, standing))):
                return False, None
            self._doubt("repeated")
            return True, (yield from self._call(holder))
        self._doubt("held")
        raise self._unknown()

    def _ask_provider(
        self, holder: str, standing: _Standing
    ) -> Generator[Any, Any, tuple[bool, Any]]:
        reconcile = self.reconcile
        assert reconcile is not None
        dead = standing.over or standing.holder.partition("#")[0] == self.context.process()
        if dead and not (yield Ask(self._take(holder, standing))):
            return False, None
        self._doubt("asked")
        value = yield Invoke(lambda: reconcile(self.provider_key))
        if value is NotFound or isinstance(value, NotFound):
            if dead:
                return True, (yield from self._call(holder))
            self.ended(Ending(End.LATER, f"{EFFECT_IS_LIVE}: {self.step}"))
            raise RetryableError(
                f"{self.step}: not found yet, and its caller may still run", code=EFFECT_IS_LIVE
            )
        if not dead and not (yield Ask(self._take(holder, standing))):
            return False, None
        return True, (yield from self._record(holder, value))

    def _call(self, holder: str) -> Script:
        """Call under our intent and record what came back."""
        calling = self.context.calling
        calling.add(holder)
        try:
            failpoints.hit(failpoints.EFFECT_INTENT)
            began = time.monotonic()
            try:
                value = yield Invoke(self._invoke)
            except Exception as error:
                yield from self._failed(holder, error)
                raise
            failpoints.hit(failpoints.EFFECT_CALLED)
            answer = yield from self._record(holder, value)
            self._emit(EffectCalled, seconds=time.monotonic() - began)
            return answer
        finally:
            calling.discard(holder)

    def _record(self, holder: str, value: Any) -> Script:
        try:
            data = _encode(value)
        except NotSerializableError:
            self._doubt("held")
            self.ended(
                Ending(End.HELD, f"{EFFECT_IN_DOUBT}: the result of {self.step} cannot be stored")
            )
            raise
        if not (yield Ask(self._settle(holder, "done", data))):
            self.ended(Ending(End.LATER, f"{StaleLeaseError.code}: {self.step}"))
            raise StaleLeaseError(f"{self.step} was taken over while it was called")
        failpoints.hit(failpoints.EFFECT_RECORDED)
        return self._decoded(data)

    def _failed(self, holder: str, error: Exception) -> Script:
        """The call raised: not done (declared so, or repeatable under the key), or nobody knows."""
        known = isinstance(error, self.not_done) or self.key_as is not None or self.repeatable
        yield Ask(self._settle(holder, "failed" if known else "intent", None))
        if known:
            return
        if self.reconcile is None:
            self._doubt("held")
            raise self._unknown() from error
        self.ended(Ending(End.RETRY, f"{OutcomeUnknownError.code}: {self.step}"))

    def _unknown(self) -> OutcomeUnknownError:
        self.ended(Ending(End.HELD, f"{EFFECT_IN_DOUBT}: {self.step}"))
        return OutcomeUnknownError(self.step, code=EFFECT_IN_DOUBT)

    def _invoke(self) -> Any:
        key = {} if self.key_as is None else {self.key_as: self.provider_key}
        return self.function(*self.args, **self.kwargs, **key)

    # --- its row ----------------------------------------------------------------------------------
    def _values(self, **more: Any) -> dict[str, Any]:
        limit_seconds = self.context.handler_timeout_seconds
        return {**self.identity.where, "step": self.step, "limit_seconds": limit_seconds, **more}

    def _intend(self, holder: str) -> Steps[_Standing | None]:
        """None: the intent is ours. Raises Ended when the message is done already."""
        more = {"holder": holder, "provider_key": self.provider_key, "arguments": self.arguments}
        inserted = yield Statement("effect.intend", self._values(**more))
        if inserted.count == 1:
            return None
        found = yield Statement("effect.look", self._values())
        if found.rows:
            state, arguments, result, old, over, alive = found.rows[0]
            stored = None if result is None else bytes(result)
            return _Standing(state, arguments, stored, old or "", bool(over), bool(alive))
        ending = Ending(End.DUPLICATE)
        self.ended(ending)
        raise Ended(ending)

    def _take(self, holder: str, standing: _Standing) -> Steps[bool]:
        more = {"holder": holder, "state": standing.state, "old_holder": standing.holder}
        return (yield Statement("effect.take", self._values(**more))).count == 1

    def _settle(self, holder: str, state: str, result: bytes | None) -> Steps[bool]:
        more = {"holder": holder, "state": state, "result": result}
        return (yield Statement("effect.settle", self._values(**more))).count == 1

    def _decoded(self, data: bytes) -> Any:
        if hasattr(self.result, "model_validate_json"):
            return self.result.model_validate_json(data)
        return msgspec.json.decode(data, type=self.result)

    def _emit(self, fact: type[Fact], **more: Any) -> None:
        group, handler = self.identity.group, self.identity.handler
        self.context.hooks.emit(fact(group=group, handler=handler, step=self.step, **more))

    def _doubt(self, resolution: str) -> None:
        self._emit(EffectInDoubt, message_id=self.message_id, resolution=resolution)


# --- doing it -------------------------------------------------------------------------------------
def run(effect: Effect, desk: Desk) -> Any:
    """Run the script of an effect in a worker thread. Raises ConfigurationError for an async
    function.
    """
    if inspect.iscoroutinefunction(effect.function):
        raise ConfigurationError(
            f"effect {effect.step}: an async function in a plain handler", code="ASYNC_EFFECT"
        )

    def do(command: Ask | Invoke | Wait) -> Any:
        if isinstance(command, Ask):
            return desk.run(command.steps)
        if isinstance(command, Invoke):
            return command.function()
        return time.sleep(command.seconds)

    script = effect.script()
    try:
        command = next(script)
        while True:
            try:
                answer = do(command)
            except BaseException as error:  # noqa: BLE001  # the script decides
                command = script.throw(error)
            else:
                command = script.send(answer)
    except StopIteration as end:
        return end.value


async def run_async(effect: Effect, desk: AsyncDesk) -> Any:
    """Run the script of an effect on the event loop; a plain function is called in a thread."""
    import asyncio  # whoever calls this has it; `import duly` is a fifth faster without it

    async def do(command: Ask | Invoke | Wait) -> Any:
        if isinstance(command, Ask):
            return await desk.call(lambda: desk.desk.run(command.steps))
        if isinstance(command, Invoke):
            if not inspect.iscoroutinefunction(effect.function):
                value = await asyncio.to_thread(command.function)
            else:
                value = command.function()
            return await value if inspect.isawaitable(value) else value
        return await asyncio.sleep(command.seconds)

    script = effect.script()
    try:
        command = next(script)
        while True:
            try:
                answer = await do(command)
            except BaseException as error:  # noqa: BLE001  # the script decides
                command = script.throw(error)
            else:
                command = script.send(answer)
    except StopIteration as end:
        return end.value


# --- values ---------------------------------------------------------------------------------------
def _encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value, enc_hook=_plain, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotSerializableError(f"{type(value).__qualname__} has no JSON form") from error


def _plain(value: Any) -> Any:
    if dump := getattr(value, "model_dump", None):  # a pydantic model
        return dump(mode="json")
    raise TypeError(f"{type(value).__qualname__} has no JSON form")


def _digest(value: Any) -> str:
    return hashlib.sha256(_encode(value)).hexdigest()


def _returned(function: Any) -> Any:
    """The annotated result type; anything where there is none, or where its names cannot be
    resolved.
    """
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        found = typing.get_type_hints(target).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any
    return Any if found is type(None) else found
