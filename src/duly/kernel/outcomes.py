"""What somebody who is asked about an interrupted call may answer besides its result."""

from __future__ import annotations

__all__ = ["NotFound"]


class NotFound:
    """What a reconcile callback returns when the provider knows nothing of the key: the class, or
    an object of it.
    """
