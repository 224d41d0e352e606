"""The command ``python -m fmnist.predict``."""
