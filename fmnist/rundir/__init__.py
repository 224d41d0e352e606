"""A run's folder: whole files, its lock and owner, models, snapshots, and what shows damage."""
