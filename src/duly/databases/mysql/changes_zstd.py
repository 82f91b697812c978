"""Transactions that MySQL compressed with zstd (``binlog_transaction_compression``), made plain.

Owns the package that does it, which is asked for when the first such transaction comes.  Invariant:
what comes out is bounded by what the event says it is, whatever the frames inside it say.
"""

from __future__ import annotations

import io
from importlib.util import find_spec

from duly.errors import MissingExtraError

__all__ = ["can_unzstd", "unzstd"]


def can_unzstd() -> bool:
    """Whether the package is there."""
    return find_spec("zstandard") is not None


def unzstd(data: bytes, size: int) -> bytes:
    """The plain bytes, and one more where there are more than ``size``, for the caller to see.

    Raises ValueError for damaged ones, MissingExtraError without the package.
    """
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "mysql,zstd") from error
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
    try:
        return reader.read(size + 1)
    except zstandard.ZstdError as problem:
        raise ValueError(str(problem)) from None
