"""``python -m fmnist.study``."""

from fmnist.study.command import main
from fmnist.utils import command_line

command_line.run(main, stopped="stopped; the same command continues where it was", patience=2.0)
