"""The Java VM inside this process: started once, when it is first needed, and never stopped.

It costs some 80 MB and, at the first use, a second of a core; ``JAVA_TOOL_OPTIONS`` reaches it.  It
leaves all signals to Python.  The invariants: a thread of ours is known to it only while it works
for us, or every thread that ever came by would be kept; and a process that was forked from one with
a Java VM never calls it - its threads are not there, and the first call would wait for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from duly.errors import ConfigurationError, MissingExtraError

__all__ = ["Java", "java"]

_OPTIONS = (
    "-Xrs",  # SIGTERM and SIGINT stay what Python made of them
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # Every failure comes as an exception, and is told by us.
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=off",
    "-Dslf4j.internal.verbosity=ERROR",
)
_lock = Lock()
_started: Java | None = None
_orphan = False


class Java:
    """The classes of one Java VM. jpype: the bridge."""

    def __init__(self, jpype: Any) -> None:
        self._jpype = jpype
        self._jars: set[str] = set()
        self.Exception: type[Exception] = jpype.JException

    def add(self, classpath: str) -> None:
        """Let it look for classes there, too. Idempotent."""
        if classpath and classpath not in self._jars:
            with self.attached():
                self._jpype.addClassPath(classpath)
            self._jars.add(classpath)

    def find(self, name: str) -> Any:
        """A class by its name. Raises ConfigurationError (XA_JARS)."""
        try:
            return self._jpype.JClass(name)
        except TypeError as error:
            text = (
                f"the Java VM has no {name.rpartition('.')[2]}: name the folder with the jars of "
                "artemis-core-client in the URL, ?jars=FOLDER"
            )
            raise ConfigurationError(text, code="XA_JARS") from error

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let this thread call Java inside the block."""
        if _orphan:
            raise ConfigurationError(
                "this process was forked from one with a Java VM, and has none of its threads; "
                "use global transactions with ActiveMQ after the fork only",
                code="XA_FORKED",
            )
        thread = self._jpype.java.lang.Thread
        if thread.isAttached():
            yield
            return
        thread.attachAsDaemon()
        try:
            yield
        finally:
            thread.detach()


def java(jars: Path | None) -> Java:
    """The Java VM of this process, with these jars; started if there is none.

    Raises MissingExtraError, ConfigurationError (XA_NO_JAVA, XA_JARS). Idempotent. On failure: the
    next call tries again.
    """
    global _started  # a process has one Java VM, for good
    if _orphan:
        assert _started is not None, "a fork is noticed by what a start has left"
        return _started
    with _lock:
        classpath = _classpath(jars)
        if _started is None:
            jpype = _imported()
            if not jpype.isJVMStarted():  # perhaps by somebody else, with other options
                _start(jpype)
            os.register_at_fork(after_in_child=_forked)
            _started = Java(jpype)
        _started.add(classpath)
        return _started


def _imported() -> Any:
    try:
        import jpype
        import jpype.config
    except ImportError as error:
        raise MissingExtraError("jpype", "xa") from error
    return jpype


def _classpath(jars: Path | None) -> str:
    if jars is None:
        return ""
    if not any(jars.glob("*.jar")):
        raise ConfigurationError(f"there is no jar in {jars}", code="XA_JARS")
    return str(jars / "*")


def _start(jpype: Any) -> None:
    try:
        jpype.startJVM(*_OPTIONS, interrupt=True)
    except (OSError, RuntimeError, ValueError) as error:  # JVMNotFoundException is a ValueError
        text = f"no Java VM can be started ({type(error).__name__}: {error})"
        text = f"{text[:300]}; install a Java runtime, 17 or newer, or set JAVA_HOME"
        raise ConfigurationError(text, code="XA_NO_JAVA") from error


def _forked() -> None:
    """In a child of a fork. Python's end would otherwise wait for Java's, which never comes."""
    global _orphan, _lock
    import jpype.config

    jpype.config.onexit = False
    _orphan, _lock = True, Lock()
