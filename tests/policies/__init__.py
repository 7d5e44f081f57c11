"""Tests of hyperflexis.policies."""
