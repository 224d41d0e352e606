"""``python -m fmnist.reference``."""

from fmnist.reference.command import main
from fmnist.utils import command_line

command_line.run(main)
