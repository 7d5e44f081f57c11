"""The OpenAI HTTP face. Owns all text; speaks tokens to whatever implements `backend.Backend`."""

from hyperflexis.gateway.limits import Limits
from hyperflexis.gateway.server import Gateway
from hyperflexis.gateway.tokenizer import TextCodec

__all__ = ["Gateway", "Limits", "TextCodec"]
