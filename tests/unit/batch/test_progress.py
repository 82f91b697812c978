from __future__ import annotations

from duly.batch.progress import Progress


def test_the_rate_is_that_of_the_last_seconds() -> None:
    progress = Progress()
    assert progress.seen().seconds_left is None
    progress.begin("extract", rows=100, size_bytes=1000, now=50.0)
    seen = progress.seen()
    assert (seen.step, seen.rows, seen.size_bytes, seen.rows_per_second) == (
        "extract",
        100,
        1000,
        None,
    )
    for second in range(1, 31):
        done = 100 + sum(100 if one > 20 else 10 for one in range(1, second + 1))
        progress.told(done, done * 10, total_bytes=50_000, now=50.0 + second)
    seen = progress.seen()
    assert seen.rows == 1300
    assert seen.rows_per_second == 100
    assert seen.bytes_per_second == 1000
    assert seen.seconds_left == 37


def test_what_is_told_too_often_takes_no_room() -> None:
    progress = Progress()
    progress.begin("send", rows=0, size_bytes=0, now=0.0)
    for n in range(10_000):
        progress.told(n, n, total_bytes=None, now=n / 1000)
    seen = progress.seen()
    assert seen.rows == 9_999
    assert seen.rows_per_second is not None
    assert 900 < seen.rows_per_second < 1100
