"""A real vLLM server keeps the contract of adapters, as far as a black box can; the same tests as for all others."""

from __future__ import annotations

import pytest
from attached_servers import RealFleet, any_url

from adapters.test_contract import *  # noqa: F403 every test there is

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> RealFleet:
    return RealFleet(any_url(request))
