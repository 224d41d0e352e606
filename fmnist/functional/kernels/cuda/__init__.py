"""The kernels of an NVIDIA GPU, compiled by Triton."""
