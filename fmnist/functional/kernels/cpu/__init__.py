"""The CPU kernels, compiled by Numba."""
