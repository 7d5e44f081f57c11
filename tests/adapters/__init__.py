"""Instances behind their contract: one suite for all kinds, and what is special about processes."""
