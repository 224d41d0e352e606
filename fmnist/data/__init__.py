"""Finds Fashion-MNIST, verifies it, and reads it as tensors."""
