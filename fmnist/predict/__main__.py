"""``python -m fmnist.predict``."""

from fmnist.predict.command import main
from fmnist.utils import command_line

command_line.run(main)
