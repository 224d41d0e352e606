"""``python -m fmnist`` and the program ``fmnist``: the commands by their names."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from fmnist.utils import command_line
from fmnist.utils.version import version

COMMANDS = {
    "study": "train every configuration of a study file",
    "view": "show runs in TensorBoard and optuna-dashboard",
    "predict": "classify pictures with the models of a run",
    "ensemble": "average the models of a run",
    "reference": "train a study file with the reference model",
}


def main() -> None:
    """Run the command that the first argument names, as ``python -m fmnist.NAME`` does."""
    program = "fmnist" if Path(sys.argv[0]).name == "fmnist" else "python -m fmnist"
    name = "".join(sys.argv[1:2])
    if name not in COMMANDS:
        command_line.run(lambda argv: _refuse(program, argv))
    sys.argv[:2] = [f"{program} {name}"]
    runpy.run_module(f"fmnist.{name}", run_name="__main__")


def _refuse(program: str, argv: Sequence[str]) -> int:
    """Print the help or the version, or what is wrong with the name of the command."""
    lines = "\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items())
    parser = command_line.Parser(
        prog=program,
        usage=f"{program} [--help | --version] COMMAND ...",
        description=f"Hyperparameter studies of small networks. COMMAND is one of\n\n{lines}",
        epilog=f"Each has a --help: {program} study --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fmnist {version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.parse_args(argv[:1])
    raise AssertionError("a known command is run, not parsed")


if __name__ == "__main__":
    main()
