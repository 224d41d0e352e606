"""The pure half: tensors in, tensors out; no files, clocks, prints or global random state."""
