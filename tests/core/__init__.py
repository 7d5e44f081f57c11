"""Tests of hyperflexis.core."""
