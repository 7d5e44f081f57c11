"""vLLM's loader of weights from peers: `--load-format hyperflexis`, see docs/vllm_plugin.md.

Without donors, and without anybody to lend to, it is vLLM's own loader; and so it is for models whose families our
engine does not know, with a warning.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from hyperflexis.engine.errors import EngineError
from hyperflexis.vllm_plugin.peers import Peers, peers
from hyperflexis.vllm_plugin.weights import Weights

log = init_logger(f"vllm.{__name__}")  # What is below that name is shown as vLLM shows its own.

_lent: list[Weights] = []
"""What this process lends, as long as it lives: vLLM keeps no loader."""


class PeerModelLoader(DefaultModelLoader):
    """Made in each worker process."""

    def __init__(self, load_config: Any) -> None:
        self._peers, rest = peers(load_config.model_loader_extra_config or {})
        plain = copy.copy(load_config)
        plain.load_format, plain.model_loader_extra_config = "auto", rest
        super().__init__(plain)

    def download_model(self, model_config: Any) -> None:
        """A donor may make it needless; what is missing then is fetched when it is loaded."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        weights = self._obtained(model_config)
        if weights is None:
            super().load_weights(model, model_config)
            return
        loaded = model.load_weights(weights.tensors())
        if loaded is not None and model_config.quantization is None:
            self.track_weights_loading(model, loaded)
        for failure in weights.failures:
            log.warning("a donor did not give the weights: %s", failure)
        where = "" if weights.lent_at is None else ", lent on {}:{}".format(*weights.lent_at)
        log.info("weights of %s come from %s%s", model_config.model, weights.origin, where)
        if weights.lent_at is None:
            weights.close()
        else:
            _lent.append(weights)

    def _obtained(self, model_config: Any) -> Weights | None:
        who = self._peers
        if not who.offers and who.lend_on is None:
            return None
        if not _is_first_rank():
            who = Peers(who.offers, None, who.secret)
        while _lent:  # The same worker loads again: its address is needed again.
            _lent.pop().close()
        try:
            return Weights(_directory(model_config), model_config.dtype, who)
        except EngineError as error:
            log.warning("weights come from disk as vLLM reads them, and are not lent: %s", error)
            return None


def _is_first_rank() -> bool:
    """One of the workers of an instance lends for all."""
    import torch.distributed

    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _directory(model_config: Any) -> Path:
    """Where the configuration is, and the weights may be."""
    if Path(model_config.model).is_dir():
        return Path(model_config.model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model_config.model, revision=model_config.revision, allow_patterns=["*.json"]))
