"""What the OpenAPI document says is what is served: right and wrong bodies of every route are answered as it says."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import schemathesis
from gateway_fakes import Served
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fuzz.serving import serving
from helpers.soak import examples
from hyperflexis.gateway.openapi import describe

pytestmark = pytest.mark.soak

SCHEMA = schemathesis.openapi.from_dict(describe(has_keys=False))
OPERATIONS = {f"{each.method} {each.path}": each for each in (found.ok() for found in SCHEMA.get_all_operations())}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def it() -> Iterator[Served]:
    with serving() as made:
        yield made


@pytest.mark.parametrize("name", OPERATIONS)
def test_routes_answer_as_the_document_says(name: str, it: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    operation = OPERATIONS[name]

    @given(st.data())
    @settings(max_examples=examples(15))
    def answers(data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from(GenerationMode))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        case.call_and_validate(base_url=it.url, checks=CHECKS, timeout=30)

    answers()
    assert not caplog.records
