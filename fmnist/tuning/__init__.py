"""The study in Optuna: the grid, the storage, and the scheduling of trials as lanes."""
