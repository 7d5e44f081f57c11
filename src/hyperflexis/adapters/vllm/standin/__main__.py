"""The command: `python -m hyperflexis.adapters.vllm.standin MODEL_DIRECTORY`, with vLLM's flags."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from pathlib import Path

import uvloop

from hyperflexis.adapters.vllm.standin.engine import Traits
from hyperflexis.adapters.vllm.standin.server import StandIn


async def _serve(options: argparse.Namespace) -> None:
    config = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    traits = Traits(
        model=options.served_model_name or options.model.name,
        root=str(options.model),
        vocabulary=config["vocab_size"],
        context_tokens_max=options.max_model_len or config.get("max_position_embeddings", 2048),
        step_s=options.step_ms / 1000,
        has_connector=options.kv_transfer_config is not None,
        seqs_max=options.max_num_seqs,
        queued_max=options.max_num_queued_reqs,
        api_key=options.api_key,
    )
    server = StandIn(options.model, traits)
    await server.start(options.port, options.host)
    await asyncio.to_thread(_announce, f"{traits.model} at http://{options.host}:{server.port}\n")
    await asyncio.Event().wait()


def _announce(message: str) -> None:
    with open(1, "w", encoding="utf-8", closefd=False) as stdout:
        stdout.write(message)


def main() -> None:
    """Serve until stopped. Flags are vLLM's; those that mean nothing here are ignored."""
    words = argparse.ArgumentParser(description="A server that answers like vLLM and computes nothing.")
    words.add_argument("model", type=Path, help="directory of a model, for its tokenizer")
    words.add_argument("--host", default="127.0.0.1")
    words.add_argument("--port", type=int, default=8000)
    words.add_argument("--served-model-name")
    words.add_argument("--max-model-len", type=int)
    words.add_argument("--max-num-seqs", type=int, default=256)
    words.add_argument("--max-num-queued-reqs", type=int)
    words.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY", ""))
    words.add_argument("--kv-transfer-config", help="keep KV for others")
    words.add_argument("--step-ms", type=float, default=10.0, help="what a step takes")
    options, _ = words.parse_known_args()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(options))


if __name__ == "__main__":
    main()
