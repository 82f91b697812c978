"""The public suites show what an assertion compared, as tests of our own do."""

import pytest

pytest.register_assert_rewrite("duly.testing.broker_conformance")
