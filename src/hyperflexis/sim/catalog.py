"""Public request traces that can be replayed, and our own sample: what they are, whose, and how to get them.

Downloads nothing. None but the sample is part of the package.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Entry:
    """One trace, or several of one origin and format."""

    name: str
    format: str
    """Its name in the table of formats."""
    files: tuple[str, ...]
    """What they are called at the origin, or what to call them where they have to be made; `*` where there are many."""
    origin: str
    licence: str
    how: str
    """How to get it, and what is to be given when it is read."""
    good_for: str
    cite: str = ""
    bundled: bool = False
    """It comes with the package."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files are, if they come with the package."""
        return tuple(DATA / name for name in self.files) if self.bundled else ()


def _github(repository: str) -> str:
    return f"https://github.com/{repository}"


SAMPLE = Entry(
    "sample",
    "hyperflexis",
    ("sample_code.jsonl.gz", "sample_chat.jsonl.gz"),
    "generated here",
    "Apache-2.0",
    "comes with the package",
    "a first run: ten minutes of code completions in bursts beside steady chat",
    bundled=True,
)

TRACES: tuple[Entry, ...] = (
    SAMPLE,
    Entry(
        "azure-2023",
        "azure",
        ("data/AzureLLMInferenceTrace_code.csv", "data/AzureLLMInferenceTrace_conv.csv"),
        _github("Azure/AzurePublicDataset"),
        "CC-BY 4.0",
        "download both from the repository; they share one clock, so give both the same origin to keep them in step",
        "two production services at once, one of them in bursts",
        "Splitwise (ISCA 2024)",
    ),
    Entry(
        "azure-2024",
        "azure",
        ("AzureLLMInferenceTrace_code_1week.csv", "AzureLLMInferenceTrace_conv_1week.csv"),
        _github("Azure/AzurePublicDataset"),
        "CC-BY 4.0",
        "linked from the repository",
        "a week: days, nights and a weekend for the scaler",
        "DynamoLLM (HPCA 2025)",
    ),
    Entry(
        "burstgpt",
        "burstgpt",
        ("data/BurstGPT_*.csv", "data/BurstGPT_without_fails_*.csv"),
        _github("HPMLL/BurstGPT"),
        "see the repository",
        "in the repository and its releases; the files with fails need skip_bad",
        "months of two models at low rates: raise the rate, bursts keep their shape",
        "BurstGPT (arXiv 2401.17644)",
    ),
    Entry(
        "mooncake",
        "mooncake",
        ("FAST25-release/traces/*.jsonl",),
        _github("kvcache-ai/Mooncake"),
        "Apache-2.0",
        "download from the repository",
        "shared prefixes and very long prompts",
        "Mooncake (FAST 2025)",
    ),
    Entry(
        "servegen",
        "servegen",
        ("*_rates.csv", "*_lengths.jsonl"),
        _github("alibaba/ServeGen"),
        "Apache-2.0",
        "the repository has a file per client and no header: join them into one table of rates, with header and "
        "client_id, and one of lengths, a JSON object per client and 6 h window",
        "many tenants of different habits over days, at any total rate; requests are generated from statistics",
        "ServeGen (arXiv 2505.09999)",
    ),
    Entry(
        "agentic",
        "sessions",
        ("traces/trace_*.json",),
        _github("callanjfox/kv-cache-tester"),
        "Apache-2.0",
        "the repository has a file per session: join them, one per line; give arrivals_per_s for the sessions",
        "coding agents in closed loop: long prompts, of which nearly all was there the turn before",
    ),
    Entry(
        "vtc-arena",
        "vtc",
        ("lmsys_arena_vtc_*.csv",),
        _github("Ying1123/VTC-artifact"),
        "Apache-2.0",
        "a pickle in the repository: write its req_id, model_dir, adapter_dir, prompt_len, output_len and req_time as "
        "CSV",
        "short chat prompts; its arrival times were rescaled, so choose the rate yourself",
    ),
    Entry(
        "sharegpt-lengths",
        "lengths",
        ("data/processed_traces/*sharegpt*.csv",),
        _github("project-etalon/etalon"),
        "Apache-2.0",
        "download from the repository; token counts only: give arrivals_per_s",
        "lengths of open chat under arrivals of your own",
    ),
    Entry(
        "arxiv-lengths",
        "lengths",
        ("data/processed_traces/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",),
        _github("microsoft/vidur"),
        "MIT",
        "download from the repository; token counts only: give arrivals_per_s",
        "long prompts and short answers under arrivals of your own",
    ),
)


def find(name: str) -> Entry:
    """One entry by its name.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    for entry in TRACES:
        if entry.name == name:
            return entry
    names = [entry.name for entry in TRACES]
    near = difflib.get_close_matches(name, names, 1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"unknown trace {name!r}; {meant}there are: {', '.join(names)}")
