"""A name for the weights of a checkpoint, read off its files without reading them: equal names, equal weights.

Covers every tensor's name, dtype, shape and a page out of its middle, whatever files they are spread over. A fine-tuned
model differs from its base nowhere but in values, which is why values are looked at; one that differed in a few rows
only could be taken for it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hyperflexis.engine.shard import Shard
from hyperflexis.engine.weights import shard_files

SAMPLE_BYTES = 4096
"""Of each tensor: what a disk reads at least."""


def fingerprint(directory: str | Path) -> str:
    """Hex digest; some hundred small reads.

    Raises:
        CheckpointError: there are no weights, or a file is torn.
    """
    rows = []
    for path in shard_files(Path(directory)):
        with Shard(path) as shard:
            for name, entry in shard.tensors.items():
                sample = hashlib.sha256(shard.sample(name, SAMPLE_BYTES)).hexdigest()
                rows.append([name, entry.dtype, list(entry.shape), sample])
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()
