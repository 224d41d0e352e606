"""Trains lanes: epochs of a vmapped step, evaluation, CUDA graphs, the choice of a fast path."""
