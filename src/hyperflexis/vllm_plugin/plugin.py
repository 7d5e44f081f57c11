"""What vLLM calls in each of its processes when it starts (entry point group `vllm.general_plugins`).

The scheduler needs no registration: it is named on the command line.
"""

from __future__ import annotations

LOAD_FORMAT = "hyperflexis"


def register() -> None:
    """Make `--load-format hyperflexis` known. Safe to be called again."""
    from vllm.model_executor.model_loader import register_model_loader

    from hyperflexis.vllm_plugin.loader import PeerModelLoader

    register_model_loader(LOAD_FORMAT)(PeerModelLoader)
