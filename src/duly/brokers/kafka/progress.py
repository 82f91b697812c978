"""How far a group is in one partition that this process reads. Pure; guarded by its reader's lock.

What may be committed is the offset above everything that is done without a gap (a watermark), never
the highest one done. Records that are given back halt the partition; it is read again from the
lowest of them, and what was seen above it and is done, or still under way, is passed over.
Invariant: each record is with the application at most once at a time, and none that is not done is
ever below what is committed.

A record may have ended the process of whoever had the partition before, and Kafka does not tell.
So whoever leaves with nothing under way says so in the offset that it commits (``LEFT``), and the
next one takes that back by a commit of its own before it hands out its first record (``unsaid``).
Where that word is missing, or could not be taken back, the first records are doubtful.
"""

from __future__ import annotations

from collections.abc import Iterable

from duly.kernel.watermark import Watermark

__all__ = ["LEFT", "Progress"]

LEFT = "duly: left in good order"  # the metadata of an offset

# How many of the records that were there before may have been with somebody else. One that ends its
# process is the lowest undone one sooner or later, however many were under way beside it.
DOUBTFUL = 100


class Progress:
    """One partition, from the moment it is assigned to the moment it is taken away (``live``).

    trusted: nobody who had it before can have died of what comes now. unsaid: it is not said yet
    that it has an owner again.
    """

    __slots__ = (
        "_doubtful_to",
        "_next",
        "_out",
        "_released",
        "_told",
        "_watermark",
        "halted",
        "live",
        "place",
        "source",
        "trusted",
        "unsaid",
    )

    def __init__(self, topic: str, partition: int, *, trusted: bool = False) -> None:
        self.place = (topic, partition)
        self.source = f"{topic}/{partition}"
        self.live = True
        self.trusted = self.unsaid = trusted
        self.halted = False
        self._watermark: Watermark | None = None
        self._next = 0
        self._told = 0
        self._doubtful_to = 0
        self._out: set[int] = set()
        self._released: set[int] = set()

    @property
    def under_way(self) -> int:
        """How many records the application has, or is about to get."""
        return len(self._out)

    def doubtful(self, offset: int) -> bool:
        """Whether an admitted record may have been with somebody before: Kafka does not tell."""
        return offset < self._doubtful_to

    @property
    def begun(self) -> bool:
        """Whether a record was admitted."""
        return self._watermark is not None

    def know_end(self, offset: int) -> None:
        """Of what is written from this offset on, nobody before had anything."""
        self._doubtful_to = min(self._doubtful_to, offset)

    def admit(self, offset: int) -> bool:
        """A record was read: whether it goes to the application."""
        if not self.live or self.halted:
            return False
        if offset in self._released:
            self._released.discard(offset)
            self._doubtful_to = max(self._doubtful_to, offset + 1)
        elif offset < self._next:
            return False
        else:
            if self._watermark is None:
                self._watermark = Watermark(offset - 1)
                self._doubtful_to = offset + (0 if self.trusted else DOUBTFUL)
            self._watermark.enter(offset)
            self._next = offset + 1
        self._out.add(offset)
        return True

    def settle(self, offset: int) -> None:
        """A record is done. One that was given back, or taken away, is not ours to settle."""
        if self.live and offset in self._out and self._watermark is not None:
            self._out.discard(offset)
            self._watermark.settle(offset)

    def release(self, offsets: Iterable[int]) -> bool:
        """Records come back undone; nothing is admitted until ``rewind``. False when none did."""
        back = self._out.intersection(offsets) if self.live else set()
        self._out -= back
        self._released |= back
        self.halted = self.halted or bool(back)
        return bool(back)

    def rewind(self) -> int:
        """Go on; the offset to read from."""
        self.halted = False
        return min(self._released, default=self._next)

    @property
    def to_commit(self) -> int | None:
        """The offset to commit; None when the one told last still holds."""
        if not self.live or self._watermark is None:
            return None
        offset = self._watermark.value + 1
        return offset if offset > self._told else None

    @property
    def last(self) -> tuple[int, str] | None:
        """The offset to leave with, and what is said of it; None where nothing has changed."""
        if not self.live or self._watermark is None:
            return None
        return self._watermark.value + 1, "" if self._out else LEFT

    def told(self, offset: int) -> None:
        """An offset was handed over to be committed; 0: it was not taken, so tell it again."""
        self._told = offset
