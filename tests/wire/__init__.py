"""Tests of hyperflexis.wire."""
