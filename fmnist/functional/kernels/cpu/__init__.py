"""The kernels of a CPU, compiled by Numba."""
