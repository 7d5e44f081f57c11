"""What can go wrong that an operator can mend. Everything else in this package is an assertion: a bug of ours.

EngineError
├── UnsupportedModelError   the checkpoint asks for arithmetic that this engine does not have
└── CheckpointError         files are missing, torn or do not fit the configuration beside them
"""


class EngineError(Exception):
    """One line that an operator can act upon."""


class UnsupportedModelError(EngineError):
    """The model needs something this engine does not compute; the message names the field and its value."""


class CheckpointError(EngineError):
    """The checkpoint cannot be read; the message names the file, and the tensor where there is one."""
