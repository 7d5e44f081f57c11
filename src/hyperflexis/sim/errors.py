"""What a simulation says of its input, told apart from mistakes of its own."""

from __future__ import annotations


class InputError(ValueError):
    """The workload, or the scenario around it, cannot be simulated as it is; the message is for whoever wrote it."""
