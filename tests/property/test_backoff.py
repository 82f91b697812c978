from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duly.kernel.backoff import Retry

policies = st.builds(
    lambda base, more, factor, jitter: Retry(
        base=base, max=base + more, factor=factor, jitter=jitter
    ),
    st.floats(0.001, 3_600),
    st.floats(0, 86_400),
    st.floats(1, 100),
    st.booleans(),
)


@given(retry=policies, attempt=st.integers(1, 10**6), chance=st.floats(0, 1))
def test_a_delay_is_always_between_half_the_base_and_max(retry, attempt, chance):
    delay = retry.delay(attempt, chance)
    least = retry.base_seconds * (0.5 if retry.jitter else 1)
    assert least * 0.999 <= delay <= retry.max_seconds


@given(retry=policies, attempt=st.integers(1, 1_000), chance=st.floats(0, 1))
def test_delays_never_shrink_from_attempt_to_attempt(retry, attempt, chance):
    assert retry.delay(attempt + 1, chance) >= retry.delay(attempt, chance) * 0.999999
