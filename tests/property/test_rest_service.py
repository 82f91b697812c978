"""The REST service holds what its own OpenAPI document says, asked by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from duly.admin.web import Tokens, make_service
from duly.admin.web.operations import OPERATIONS, Operation
from tests.unit.batch.world import BY, Script, add_job, make_app

HEADERS = {"Authorization": "Bearer t0ken-of-alice-0123456789"}
EXAMPLES = 6


class Service(NamedTuple):
    """The service, its document, and what there is to ask for."""

    schema: Any
    known: dict[str, str]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    app = make_app(tmp_path_factory.mktemp("rest"))
    add_job(app, Script(), schedule="0 3 * * *")
    made = make_service(app, Tokens({"alice": HEADERS["Authorization"].split()[1]}))
    schema = schemathesis.openapi.from_asgi("/openapi.json", made, headers=HEADERS)
    run = app.batches.start("lines", {"day": date(2026, 11, 22)}, by=BY).instance
    yield Service(schema, {"instance": run, "job": "lines"})
    app.close()


@pytest.mark.parametrize("operation", OPERATIONS, ids=[one.name for one in OPERATIONS])
def test_every_answer_is_one_that_the_document_has(service: Service, operation: Operation) -> None:
    """Where a request fits, and where it does not; half of them name what is there.

    That a text is printable, or names a parameter of the job, is more than a schema can say, so a
    request that fits it may be refused - by an error that the document has.
    """
    asked = service.schema[operation.path][operation.method.upper()]
    seen: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=asked.as_strategy(), there=st.booleans())
    def ask(case: Any, there: bool) -> None:
        if there:
            case.path_parameters = {name: service.known[name] for name in case.path_parameters}
        answer = case.call(headers=HEADERS)
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])
        seen.add(answer.status_code)

    ask()
    assert seen <= {200, 401, 404, 409, 422}
    assert seen & {200, 404, 409}
