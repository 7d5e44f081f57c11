"""Whatever is wrong inside a file of any format, it gives good jobs or a TraceError of one line, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis.sim.traces import Options, TraceError, open_trace
from sim.traces.files import write

FILES = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.97,48,10\r\n2023-11-16 18:18:04,31,8\r\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n45,ChatGPT,1087,230\n",
    "vtc": "req_id,prompt_len,output_len,req_time\n0,13,199,0.0\n1,36,137,0.2\n",
    "lengths": "num_prefill_tokens,num_decode_tokens\n3772,54\n2015,156\n",
    "servegen": "client_id,timestamp,rate,cv,pattern\n3,0,0.05,2.0,Gamma\n3,600,0.05,0.5,Weibull\n",
    "mooncake": '{"timestamp": 0, "input_length": 678, "output_length": 5, "hash_ids": [0, 1]}\n' * 2,
    "sessions": '{"id":"a","block_size":64,"hash_id_scope":"local","requests":'
    '[{"in":128,"out":5,"hash_ids":[1,2],"think_time":0.0},{"in":129,"out":5,"hash_ids":[1,2],"think_time":3.0}]}\n',
    "replay": '{"timestamp":0,"session_id":"a","input_length":10,"output_length":20}\n'
    '{"session_id":"a","input_length":30,"output_length":10,"delay":1500}\n{"at_s":4,"prompt_len":3,"output_len":3}\n',
    "hyperflexis": '{"at_s":1.5,"prompt_tokens":4,"output_tokens":2,"class":"a"}\n' * 2,
}
SERVEGEN_LENGTHS = '{"client_id":3,"window_start":0,"input_tokens":{"7":1.0},"output_tokens":{"4":0.5,"5":0.5}}\n'
PIECES = [*'0,.-+eE"{}[]: \n\r\tN\x00é', "null", "true", "NaN", "1e999", "-1", "[]", "{}", '""', "9" * 20]
EDIT = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["", *PIECES]), st.integers(0, 5))
EDITS = st.lists(EDIT, max_size=3)


def corrupted(text: str, edits: list[tuple[float, str, int]]) -> str:
    """Some places overwritten by other pieces, longer or shorter."""
    for place, piece, gone in edits:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + gone :]
    return text


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(edits=EDITS, lengths_edits=EDITS, skip_bad=st.booleans())
def test_corruption_gives_good_jobs_or_one_error(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    edits: list[tuple[float, str, int]],
    lengths_edits: list[tuple[float, str, int]],
    skip_bad: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = write(folder / "x_rates.csv", corrupted(FILES[name], edits))
    write(folder / "x_lengths.jsonl", corrupted(SERVEGEN_LENGTHS, lengths_edits))
    options = Options(arrivals_per_s=0.1, skip_bad=skip_bad, window_s=(0.0, 1200.0))
    complaint = ""
    try:
        for job in open_trace(path, name, options):
            assert 0 <= job.at_s < float("inf")
            assert min(job[1:3]) > 0
            assert job.follow_up is None or job.follow_up(9.0) is not None
    except TraceError as error:
        complaint = str(error)
    assert "\n" not in complaint
