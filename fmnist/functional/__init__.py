"""Pure functions of tensors: no files, no clock, no output and no global random state."""
