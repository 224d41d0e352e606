"""Optuna's side of a study: the grid, its storage, and the scheduling of trials as lanes."""
