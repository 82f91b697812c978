"""Places in a server's binary log, and the positions that a reader stores.

Owns their text.  A *place* is a log file's number, an offset in there, and when that file was made:
a log that was begun anew (RESET MASTER, a server set up again) has files of the same names and of
another time.  A *position* is the place behind a commit, and the place to read from again, which
lies before it while a prepared XA transaction is open.  Invariant: text compares like places, by
its first 14 digits; the rest of equal places is equal too.  Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from duly.errors import PermanentError

__all__ = ["FIRST_OFFSET", "OFFSET_MAX", "Place", "Position", "file_name", "file_number"]

FIRST_OFFSET: Final = 4  # behind the magic number
OFFSET_MAX: Final = 0xFFFFFFFF  # the largest that the protocol can ask for
_FILE_MAX: Final = 0xFFFFFF
_WIDTH: Final = 22


class Place(NamedTuple):
    """file: number of the log file. offset: in bytes. made: seconds since 1970, 0 where unknown."""

    file: int
    offset: int
    made: int = 0

    @property
    def text(self) -> str:
        """22 hexadecimal digits. What ends behind 4 GiB stands at the last offset there is."""
        if self.file > _FILE_MAX:
            raise PermanentError(
                f"log file {self.file} has too high a number; RESET MASTER and begin anew",
                code="CDC_POSITION",
            )
        return f"{self.file:06X}{min(self.offset, OFFSET_MAX):08X}{self.made:08X}"

    @property
    def order(self) -> tuple[int, int]:
        """What places of one log are compared by."""
        return self.file, min(self.offset, OFFSET_MAX)


class Position(NamedTuple):
    """Everything up to ``place`` is done; ``again``: where to read from, to know what is open."""

    place: Place
    again: Place | None = None

    @property
    def text(self) -> str:
        """22 digits, 44 while the log must be read again from an earlier place."""
        return self.place.text + (self.again.text if self.again is not None else "")

    @property
    def start(self) -> Place:
        """Where to read from."""
        return self.again or self.place

    @classmethod
    def parse(cls, text: str) -> Position:
        """Raises PermanentError (code CDC_POSITION) for what is no position of a binary log."""
        try:
            if len(text) not in (_WIDTH, 2 * _WIDTH):
                raise ValueError(text)
            places = [_place(text[at : at + _WIDTH]) for at in range(0, len(text), _WIDTH)]
        except ValueError:
            wrong = f"{text!r:.80} is no position of a binary log"
            raise PermanentError(wrong, code="CDC_POSITION") from None
        return cls(*places)


def _place(text: str) -> Place:
    return Place(int(text[:6], 16), int(text[6:14], 16), int(text[14:], 16))


def file_number(name: str) -> int:
    """The number of a log file. Raises ValueError for a name without one."""
    base, _, digits = name.rpartition(".")
    if not base or not digits.isdecimal():
        raise ValueError(name)
    return int(digits)


def file_name(base: str, number: int) -> str:
    """The name of a log file. base: what stands before the dot."""
    return f"{base}.{number:06d}"
