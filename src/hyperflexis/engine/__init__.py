"""Computes tokens with PyTorch: weights, paged KV, one forward per step, sampling.

It knows nothing of SLOs, scheduling, sockets or processes. Who enters a step, and which KV blocks a sequence owns, is
decided elsewhere and arrives as numbers. Importing this package alone does not import torch; its modules do.
"""
