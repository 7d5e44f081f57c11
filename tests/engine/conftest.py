"""Tiny checkpoints on disk, made once per run by transformers, and the models to compare with.

Without torch and transformers the whole folder is left out: the engine is an extra.
"""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch
    from engine_models import SHAPES, Checkpoint, make_checkpoint

    torch.set_num_threads(1)

    @pytest.fixture(scope="session")
    def checkpoints(tmp_path_factory: pytest.TempPathFactory):
        """Name → checkpoint, each written when first asked for."""
        made: dict[str, Checkpoint] = {}

        def checkpoint(name: str) -> Checkpoint:
            if name not in made:
                made[name] = make_checkpoint(name, tmp_path_factory.mktemp(name))
            return made[name]

        return checkpoint

    @pytest.fixture(params=sorted(SHAPES))
    def any_checkpoint(request: pytest.FixtureRequest, checkpoints) -> Checkpoint:
        return checkpoints(request.param)
