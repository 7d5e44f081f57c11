"""Request traces as jobs: one file per format, told apart by their first line, read lazily."""

from hyperflexis.sim.traces.reading import Options
from hyperflexis.sim.traces.source import TraceError
from hyperflexis.sim.traces.table import FORMATS, Trace, detect, open_trace

__all__ = ["FORMATS", "Options", "Trace", "TraceError", "detect", "open_trace"]
