"""The command ``python -m fmnist.view``."""
