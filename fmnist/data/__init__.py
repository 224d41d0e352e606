"""The data set: finds Fashion-MNIST, verifies it, and reads it as tensors."""
