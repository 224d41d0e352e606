"""``python -m fmnist.view``."""

from fmnist.utils import command_line
from fmnist.view.command import main

command_line.run(main)
