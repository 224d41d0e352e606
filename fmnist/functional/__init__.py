"""The pure half: tensors in, tensors out. See DESIGN in the README for its rules."""
