"""Errors that are the operator's to mend: a sentence for people, a hint, an exit code, never a stack trace."""

from __future__ import annotations


class OperatorError(Exception):
    """What was asked for cannot be done as asked: bad usage or configuration."""

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class StartError(OperatorError):
    """What was asked for is sound, but it could not be started here: a port in use, a device absent."""

    exit_code = 3
