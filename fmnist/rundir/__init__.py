"""A run's folder: atomic files, lock, ownership, models, snapshots, manifest and integrity."""
