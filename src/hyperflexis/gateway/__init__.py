"""The OpenAI HTTP face. Owns all text; speaks tokens to whatever implements `backend.Backend`."""
