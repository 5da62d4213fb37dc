"""schemathesis over the OpenAPI document: no 5xx, and every answer is what the document says."""

import pytest


@pytest.mark.slow
def test_answers_are_those_of_the_document(url: str):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, settings

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = schemathesis.checks
    chosen = [
        checks.not_a_server_error,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
    ]
    seen: dict[str, dict[int, int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        counts = seen.setdefault(operation.label, {})

        @settings(max_examples=40, deadline=None, database=None, derandomize=True,
                  suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])  # fmt: skip
        @hypothesis_given(operation)
        def run(case, counts=counts):
            answer = case.call(timeout=60)
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            case.validate_response(answer, checks=chosen)

        run()
    print(seen)
    assert all(200 in counts for counts in seen.values())
