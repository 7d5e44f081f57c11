"""Where a deployment's weights lie on this machine, fetched from the hub first where they do not."""

from __future__ import annotations

from pathlib import Path

from hyperflexis.cli.deployment import Deployment
from hyperflexis.cli.errors import StartError


def model_directory(deployment: Deployment) -> Path:
    """The directory of the deployment's model.

    Raises:
        OperatorError: there is no such directory.
        StartError: it is not here and cannot be fetched.
    """
    source = deployment.model_source()
    if isinstance(source, Path):
        return source
    from hyperflexis.runtime.checkpoint import CheckpointUnavailableError, fetch  # only who fetches needs the hub

    try:
        return fetch(source, has_weights=not deployment.attach and deployment.launcher != "vllm")
    except CheckpointUnavailableError as error:
        raise StartError(str(error), error.hint) from error
