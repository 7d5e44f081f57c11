"""Tests of hyperflexis.sim.traces."""
