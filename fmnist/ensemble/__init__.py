"""``python -m fmnist.ensemble``: averages the models of a run, and measures what it gains."""
