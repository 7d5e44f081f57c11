"""Plays seeds, shrinks what breaks, and tells what was met.

PYTHONPATH=tests python -m faults 17              one seed, and its plan made small if it breaks something
PYTHONPATH=tests python -m faults 0 10000         so many, from there on
PYTHONPATH=tests python -m faults 0 1000 --table  what was met in how many of them, in Markdown
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from faults.coverage import Coverage
from faults.plan import Plan, draw
from faults.shrinking import shrink
from faults.world import play


def failure(plan: Plan, coverage: Coverage | None = None) -> Exception | None:
    """What breaks in a plan's world."""
    try:
        play(plan, coverage)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what was looked for
        return error
    return None


def kind(error: Exception | None) -> tuple[str, str, str] | None:
    """What makes two failures one: what was raised and where."""
    if error is None:
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error).__name__, last.filename, last.name


def explain(seed: int, error: Exception) -> str:
    """What broke, how to see it again, and the least that breaks it in the same way."""
    smallest = shrink(draw(seed), lambda plan: kind(failure(plan)) == kind(error))
    told = failure(smallest) or error
    return "\n".join(
        [
            f"seed {seed}: {type(error).__name__}: {error}",
            f"again: make faults SEED={seed}",
            f"the least that breaks it: {smallest!r}",
            "".join(traceback.format_exception(told)),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description="Play worlds full of faults, by the seed.")
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--table", action="store_true", help="tell what was met, in Markdown")
    arguments = parser.parse_args()
    began_s, coverage, broken = time.monotonic(), Coverage(), 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        error = failure(draw(seed), coverage)
        if error is not None:
            broken += 1
            print(explain(seed, error), flush=True)
    if arguments.table:
        print(coverage.markdown())
    print(f"{arguments.count} worlds in {time.monotonic() - began_s:.0f} s, {broken} of them broken", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
