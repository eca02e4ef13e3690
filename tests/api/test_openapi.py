"""The OpenAPI document is complete, and whatever it allows gets an answer that it describes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import hypothesis.errors
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from tests.api import kit

EXAMPLES = 8  # for each of 30 operations; `--long` looks deeper
METHODS = {"get", "post", "patch", "delete"}


@pytest.fixture
def document(lab: kit.Lab) -> dict[str, Any]:
    found: dict[str, Any] = lab.api.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield path, method, operation


def test_every_operation_is_described_with_its_failures(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        failures = [code for code in operation["responses"] if code >= "400"]
        assert "503" in failures, where
        for code in failures:
            content = operation["responses"][code]["content"]
            assert list(content) == ["application/problem+json"], where
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_body_has_an_example_that_its_schema_allows(document: dict[str, Any]) -> None:
    import jsonschema_rs

    schemas = document["components"]["schemas"]
    bodies = 0
    for path, method, operation in operations(document):
        if "requestBody" not in operation:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        options = [schema, *schema.get("anyOf", [])]
        [name] = [one["$ref"].rpartition("/")[2] for one in options if "$ref" in one]
        examples = schemas[name].get("examples")
        assert examples, f"{method} {path}"
        validator = jsonschema_rs.validator_for(
            {**schemas[name], "components": document["components"]}
        )
        for example in examples:
            validator.validate(example)
            bodies += 1
    assert bodies >= 10


def test_names_of_operations_are_unique(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))


def test_the_documentation_page_needs_nothing_from_elsewhere(lab: kit.Lab) -> None:
    answer = lab.api.get("/docs")
    assert answer.status_code == 200
    assert "/api/v1/backups/{backup_id}" in answer.text
    assert "<script" not in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text


def test_whatever_the_document_allows_gets_an_answer_that_it_describes(
    lab: kit.Lab, *, long_run: bool, seed: int
) -> None:
    """Random requests, good and bad, to every operation; a failure is repeated by `--seed`."""
    lab.add_vm(disks=1)
    described = schemathesis.openapi.from_url(f"{lab.api.base_url}openapi.json")
    excluded = [
        # A configuration's fields are its connector's, and paths are refused for where they lead:
        # both are more than a schema can say.
        schemathesis.checks.positive_data_acceptance,
    ]
    tried = 0
    for found in described.exclude(path="/api/v1/jobs/events").get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @hypothesis.seed(seed)
            @settings(
                max_examples=EXAMPLES * (50 if long_run else 1),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_one(case: Case[Any]) -> None:
                nonlocal tried
                tried += 1
                case.call_and_validate(excluded_checks=excluded)

            # An operation without parameters and body has no negative case.
            with contextlib.suppress(hypothesis.errors.Unsatisfiable):
                try_one()
    assert tried > 100
