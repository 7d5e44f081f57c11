"""HyperFlexis: multi-SLO serving of large language models. Importing it imports no engine."""

__version__ = "0.1.0"
