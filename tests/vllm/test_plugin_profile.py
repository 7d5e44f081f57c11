"""`hyperflexis profile http://…` against a real server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from servers import Server

from hyperflexis.cli import profile_server
from hyperflexis.core.latency import StepShape
from hyperflexis.sim.profiles import load_profile

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

GRID = ["prefill_tokens=16,48,96,192,384", "decode_seqs=1,4,16", "context_tokens=48,200", "rounds=2"]


def test_unseen_steps_are_predicted(plugin_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    assert profile_server.run(plugin_server.url, out, is_quick=True, grid=GRID) == 0
    said = capsys.readouterr().out
    found = re.search(r"held out: median error ([\d.]+)% of (\d+) steps", said)
    assert found is not None, said
    assert int(found[2]) >= 3
    assert float(found[1]) <= 60, f"others may use the machine too, but:\n{said}"
    profile = load_profile(str(out))
    assert profile.kv_tokens == 8192
    assert profile.kv_token_bytes == 8192
    step_s = profile.latency.step_s
    assert step_s(StepShape(384, 384**2)) > 2 * step_s(StepShape(16, 256))
    assert step_s(StepShape(0, 0, 16, 16 * 100)) > step_s(StepShape(0, 0, 1, 100)) > 0
