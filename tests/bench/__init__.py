"""Load for an endpoint, in virtual time."""
