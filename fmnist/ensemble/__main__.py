"""``python -m fmnist.ensemble``."""

from fmnist.ensemble.command import main
from fmnist.utils import command_line

command_line.run(main)
