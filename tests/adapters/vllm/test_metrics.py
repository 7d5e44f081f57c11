"""The lines of vLLM's metrics that are read, and what shows that they are of another process."""

from __future__ import annotations

from hyperflexis.adapters.vllm.metrics import cache_config, engines, read

PAGE = b"""# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79596387915e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="demo"} 3.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="demo",reason="capacity"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="demo"} 100.0
vllm:generation_tokens_total{engine="0",model_name="demo"} 11.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",num_gpu_blocks="512"} 1.0
"""


def test_lines_are_found() -> None:
    gauges = read(PAGE)
    assert gauges == (1795963879.15, 3.0, 2.0, 0.25, 111.0)
    assert cache_config(PAGE)["num_gpu_blocks"] == "512"
    assert engines(PAGE) == 1


def test_engines_behind_one_address_are_added_up() -> None:
    second = (
        PAGE.replace(b'engine="0"', b'engine="1"').replace(b"_perc{engine", b"_perc{engine").replace(b"0.25", b"0.75")
    )
    gauges = read(PAGE + second.partition(b"\n")[2].replace(b"process_start_time_seconds", b"other"))
    assert (gauges.running, gauges.waiting, gauges.kv_used, gauges.tokens) == (6.0, 4.0, 0.5, 222.0)
    assert engines(PAGE + second) == 2


def test_what_is_not_there_is_none() -> None:
    assert read(b"") == (None, None, None, None, 0.0)
    assert cache_config(b"") == {}


def test_other_process_is_known_by_its_start_or_by_counters_that_fall() -> None:
    before = read(PAGE)
    assert not before.is_younger_than(before)
    assert before._replace(started_s=5.0).is_younger_than(before)
    silent = before._replace(started_s=None)
    assert silent._replace(tokens=3.0).is_younger_than(silent)
    assert not silent._replace(tokens=300.0).is_younger_than(silent)
