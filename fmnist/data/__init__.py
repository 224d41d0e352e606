"""The images: where they come from, and as verified tensors."""
