"""The shipped table against the numbers that it was made from, and files of one's own."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from hyperflexis.core.latency import LatencyModel, StepShape
from hyperflexis.sim.profiles import COEFFICIENTS, Profile, from_fields, load_profile, names

ROOT = Path(__file__).parent.parent.parent
FITS_HEAD = (
    "model,hardware,tp,weight_dtype,form,a_ms,b_ms_per_token,c_ms_per_token_ctx,d_ms_per_decode_seq,e_ms_per_ctx_token,"
    "mape_cv5,kv_capacity_tokens,source"
)


def fields(**changed: Any) -> dict[str, Any]:
    coefficients = dict(zip(COEFFICIENTS, (0.01, 0.02, 1e-5, 1e-9, 1e-4, 1e-7), strict=True))
    return {"latency": coefficients, "kv_tokens": 1000} | changed


# The table.


def test_every_profile_loads() -> None:
    assert len(names()) > 90
    assert list(names()) == sorted(set(names()))
    for name in names():
        profile = load_profile(name)
        model, hardware, tp, dtype, *origin = name.split("/")
        assert model
        assert hardware.split("-")[0] in ("a100", "h100", "h200", "rtxpro6000")
        assert tp in ("tp1", "tp2", "tp4", "tp8")
        assert dtype in ("bfloat16", "fp8", "float16")
        assert origin == (["splitwise"] if "splitwise" in profile.source else [])
        assert profile.name == name
        assert profile.kv_tokens > 30_000
        assert min(profile.latency.prefill_base_s, profile.latency.decode_base_s) > 0.001


@pytest.mark.parametrize(
    ("name", "tokens", "milliseconds"),
    [
        ("llama-3-8b/h100/tp1/bfloat16", 8192, 168.8),
        ("llama-3-8b/a100/tp1/bfloat16", 8192, 508),
        ("llama-3-70b/a100/tp4/bfloat16", 8192, 1339),
        ("qwen2.5-32b/h200/tp2/bfloat16", 2048, 101),
    ],
)
def test_prefill_takes_what_the_source_says(name: str, tokens: int, milliseconds: float) -> None:
    """A whole prefill: wrong by a quarter if the quadratic term were not halved where it must be."""
    shape = StepShape(prefill_tokens=tokens, prefill_pairs=tokens**2)
    assert load_profile(name).latency.step_s(shape) * 1000 == pytest.approx(milliseconds, rel=0.003)


def test_decode_takes_what_the_source_says() -> None:
    latency = load_profile("qwen2.5-14b/h100/tp1/bfloat16").latency
    expected_ms = 11.402 + 0.0180 * 32 + 6.289e-5 * 32 * 1024
    assert latency.decode_step_s(32, 32 * 1024) * 1000 == pytest.approx(expected_ms)


@pytest.mark.parametrize(
    ("name", "thousands"),
    [
        ("llama-3-8b/h100/tp1/bfloat16", 411),
        ("qwen2.5-14b/a100/tp1/bfloat16", 205),
        ("qwen2.5-32b/h100/tp2/bfloat16", 284),
        ("qwen2.5-32b/h200/tp2/bfloat16", 703),
        ("llama-3-70b/h100/tp4/bfloat16", 424),
    ],
)
def test_kv_memory_is_what_the_weights_leave(name: str, thousands: int) -> None:
    assert round(load_profile(name).kv_tokens / 1000) == pytest.approx(thousands, abs=1)


def test_splitwise_names_leave_out_what_is_unusable() -> None:
    splitwise = [name for name in names() if name.endswith("/splitwise")]
    assert "llama-2-70b/h100/tp4/float16/splitwise" in splitwise
    assert not [name for name in splitwise if "/tp2/" in name]


def test_table_says_where_it_is_from() -> None:
    table = (ROOT / "src/hyperflexis/sim/data/profiles.csv").read_text(encoding="utf-8")
    head = "".join(line for line in table.splitlines() if line.startswith("#"))
    assert all(
        word in head
        for word in ("aiconfigurator, Apache-2.0", "vidur, MIT", "LLMServingSim, MIT", "splitwise-sim, MIT")
    )


def test_derivation_converts_units_and_halves_the_pairs(tmp_path: Path) -> None:
    fits = tmp_path / "fits.csv"
    rows = [
        "m,h100,4,bfloat16,linear,10,.05,8e-7,.03,3e-5,.07,1000,composed: x",
        "m,h100,4,bfloat16,hinge,11,.05,8e-7,.03,3e-5,.07,1000,composed: x",
        "m,h100,4,float16,linear,20,.05,8e-7,.03,3e-5,.07,,measured: splitwise",
        "m,h100,2,float16,linear,20,.05,8e-7,.03,3e-5,.07,,measured: splitwise",
        "m,rtx4090,1,bfloat16,linear,10,.05,8e-7,.03,3e-5,.07,,composed: y",
    ]
    fits.write_text("\n".join([FITS_HEAD, *rows]) + "\n", encoding="utf-8")
    derived = runpy.run_path(str(ROOT / "scripts" / "derive_profiles.py"))["derive"](fits)
    lines = [line for line in derived.splitlines() if line.startswith("m/")]
    assert lines == [
        "m/h100/tp4/bfloat16,0.01,0.01,5e-05,4e-10,3e-05,3e-08,1000,.07,composed: x",
        "m/h100/tp4/float16/splitwise,0.02,0.02,5e-05,4e-10,3e-05,3e-08,1000,.07,measured: splitwise",
    ]


# Files.


def test_json_file_loads(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    extra = {"name": "own", "source": "measured here", "mape": 0.05, "samples": [[1, 2]]}
    file.write_text(json.dumps(fields(**extra)), encoding="utf-8")
    assert load_profile(str(file)) == Profile(
        "own", LatencyModel(0.01, 0.02, 1e-5, 1e-9, 1e-4, 1e-7), 1000, "measured here", 0.05
    )


def test_name_and_source_default_to_the_file() -> None:
    profile = from_fields(fields(), "a.json")
    assert (profile.name, profile.source, profile.mape) == ("a.json", "a.json", None)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (0.05, 0.05),
        (None, None),
        ({}, None),
        ({"decode": 0.1, "prefill": 0.2}, 0.2),
        ({"decode": 1, "held_out": 0.3}, 0.3),
    ],
)
def test_error_may_be_one_or_several_by_name(given: object, read: float | None) -> None:
    assert from_fields(fields(mape=given), "f").mape == read


def latency(**changed: Any) -> dict[str, Any]:
    return {"latency": fields()["latency"] | changed}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "f: a profile should be a mapping of latency, kv_tokens, kv_token_bytes, .*"),
        ({}, "f: the profile lacks latency and kv_tokens"),
        (fields(latency=3), "f: latency should be a mapping of prefill_base_s, decode_base_s, .*"),
        (fields(latency={}), "f: latency lacks prefill_base_s, .*context_token_s"),
        (fields(kv_token=1), "f: unknown field 'kv_token': did you mean 'kv_tokens'\\?"),
        (fields(zzz=1), "f: unknown field 'zzz'; known are latency, .*"),
        (fields(**latency(prefil_base_s=1)), "f: unknown field 'latency.prefil_base_s': .*'latency.prefill_base_s'\\?"),
        (fields(**latency(decode_seq_s=-1e-3)), "f: decode_seq_s must be a non-negative number of seconds, not -0.001"),
        (fields(**latency(decode_seq_s=float("nan"))), "f: decode_seq_s must be a non-negative .* not nan"),
        (fields(**latency(decode_seq_s="1")), "f: decode_seq_s must be a non-negative .* not '1'"),
        (fields(**latency(decode_seq_s=True)), "f: decode_seq_s must be a non-negative .* not True"),
        (fields(latency=dict.fromkeys(COEFFICIENTS, 0)), "f: all coefficients are 0, so that steps would take no time"),
        (fields(kv_token_bytes=0), "f: kv_token_bytes must be a positive whole number of bytes, not 0"),
        (fields(kv_tokens=0), "f: kv_tokens must be a positive whole number of tokens, not 0"),
        (fields(kv_tokens=1.5), "f: kv_tokens must be a positive whole number of tokens, not 1.5"),
        (fields(kv_tokens=True), "f: kv_tokens must be a positive whole number of tokens, not True"),
        (fields(mape=-1), "f: mape must be a non-negative number, not -1"),
        (fields(mape={"decode": "x"}), "f: mape must be a non-negative number, not 'x'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        from_fields(given, "f")


def test_unknown_name_has_near_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no profile or file 'llama-3-70b/h100/tp4/bf16'; did you mean llama-3-70b/h100"
    ):
        load_profile("llama-3-70b/h100/tp4/bf16")
    with pytest.raises(ValueError, match="did you mean llama-3-70b/h100/tp4/bfloat16 or llama-3-70b/h100/tp4/fp8"):
        load_profile("llama-3-70b/h100/tp4")
    with pytest.raises(ValueError, match=r"^no profile or file '\?'$"):
        load_profile("?")


def test_unreadable_files_say_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read '.*absent.json': No such file"):
        load_profile(str(tmp_path / "absent.json"))
    broken = tmp_path / "broken.json"
    broken.write_text('{\n"latency": }', encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.json:2: not JSON: Expecting value"):
        load_profile(str(broken))
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken.json is not UTF-8 text"):
        load_profile(str(broken))
