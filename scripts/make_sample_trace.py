"""Write the sample traces that ship with the package, from `hyperflexis.sim.sample`; the same bytes each time."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from hyperflexis.sim.catalog import DATA, SAMPLE
from hyperflexis.sim.sample import CHAT, CODE, Recipe, generate

DURATION_S = 600.0
SEED = 2024


def write(recipe: Recipe, path: Path) -> int:
    """Write one class's requests; returns how many."""
    rows = [
        {"at_s": round(job.at_s, 4), "prompt_tokens": job.prompt_tokens, "output_tokens": job.output_tokens}
        for job in generate(recipe, DURATION_S, SEED)
    ]
    text = "".join(json.dumps(row | {"class": recipe.service_class}) + "\n" for row in rows)
    # No time and no name inside: the file depends on its content alone.
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    return len(rows)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for recipe, name in zip((CODE, CHAT), SAMPLE.files, strict=True):
        path = folder / name
        print(f"{path}: {write(recipe, path)} requests")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
