"""The command line ``python -m fmnist.ensemble``: averages the models of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist.rundir import found
from fmnist.utils import command_line, interpreter, runtime

if TYPE_CHECKING:
    from fmnist.inference.ensembles import Found

PROG = "fmnist.ensemble"

_ABOUT = """\
Members are taken from the complete trials, the best on the held-out images first, and averaged one
by one: a line for each number of members. The test set is reported and chooses nothing: where no
images were held out, the trials come by number. With `test = false` in the study it stays unseen.

  all       every trial
  seeds     the trials of the winner's configuration, by number, when the seed is an axis (the
            default then)
  best:K    the K best trials
  greedy:K  up to K trials, each the one with which the mean has the least loss on the held-out
            images; one may be taken several times (Caruana et al., 2004)

--save FILE.safetensors writes the members as one file, which `predict --run FILE` takes.
"""


def main(argv: Sequence[str]) -> int:
    """Measure an ensemble and print what it gains.

    Args:
        argv: the arguments of the command line.

    Returns:
        The exit status.

    Raises:
        UserError: The run has no such members, or a file cannot be read or written.
    """
    args = _parser().parse_args(argv)
    interpreter.need_torch("ensemble")
    run = Path(args.run) if args.run else found.latest(found.FINISHED)
    runtime.prepare()
    if args.plot:
        from fmnist.reports import members as figure

        figure.check(args.plot)

    from fmnist.data import fashion_mnist
    from fmnist.inference import ensembles, trained
    from fmnist.utils.errors import UserError

    if args.save:
        ensembles.check_path(args.save)
    classes = trained.class_names(run) or fashion_mnist.CLASS_NAMES
    if classes != fashion_mnist.CLASS_NAMES:
        raise UserError(f"{run}: was trained on other data than Fashion-MNIST, which is not here")
    members = args.members or ("seeds" if trained.has_seeds(run) else "all")
    measured = ensembles.measure(run, fashion_mnist.load(args.data), members)
    if args.save:
        ensembles.save(args.save, measured.members, classes)
    if args.plot:
        _plot(args.plot, f"{run.name}: mean of {members}", measured)
    if args.json:
        print(json.dumps(_document(run, members, measured), indent=2, allow_nan=False))
    else:
        print("\n".join([f"{run}: {members}", *_table(measured)]))
        for path in filter(None, (args.save, args.plot)):
            print(f"written: {path}")
    return 0


def _plot(path: Path, title: str, measured: Found) -> None:
    from fmnist.reports import members

    series = members.series(measured.test, measured.validation)
    members.draw(series, measured.singles, measured.images, title, path)


def _table(measured: Found) -> list[str]:
    """A line for each number of members, and a sentence."""
    both = {"validation": measured.validation, "test": measured.test}
    splits = [(name, own) for name, own in both.items() if own]  # the reported one last
    header = f"{'members':>7}  {'trial':>5}"
    for name, _ in splits[:-1]:
        header += f"  {name:>10}  {'its loss':>8}"
    header += f"  {splits[-1][0]:>10}  {'± 95%':>6}  {'its loss':>8}  {'calibration error':>17}"
    lines = [header]
    for place, member in enumerate(measured.order):
        *others, own = (measures[place] for _, measures in splits)
        line = f"{place + 1:>7}  {member.number:>5}"
        for other in others:
            line += f"  {other.accuracy:>10.4f}  {other.loss:>8.4f}"
        line += f"  {own.accuracy:>10.4f}  {measured.margin(own):.4f}  {own.loss:>8.4f}"
        lines.append(line + f"  {own.calibration_error:>17.4f}")
    mean = sum(measured.singles) / len(measured.singles)
    lines.append(
        f"A single member has a {measured.split} accuracy of {min(measured.singles):.4f} to "
        f"{max(measured.singles):.4f}, {mean:.4f} on average; two of them differ on "
        f"{measured.disagreement:.1%} of the {measured.split} images."
    )
    return lines


def _document(run: Path, members: str, measured: Found) -> dict[str, Any]:
    return {
        "run": str(run),
        "members": members,
        "trials": [member.number for member in measured.order],
        "test": [own._asdict() for own in measured.test],
        "validation": [own._asdict() for own in measured.validation],
        "disagreement": measured.disagreement,
        f"{measured.split}_accuracy_of_each": list(measured.singles),
    }


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog=command_line.called(PROG),
        description="How good is the mean of several models of a run?",
        epilog=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="a folder that `python -m fmnist.study` left (default: the latest in runs/)",
    )
    parser.add_argument("--members", metavar="WHICH", help="all, seeds, best:K or greedy:K; below")
    parser.add_argument(
        "--save",
        type=command_line.path,
        metavar="FILE.safetensors",
        help="write the members as one file",
    )
    parser.add_argument(
        "--plot",
        type=command_line.path,
        metavar="FILE.png",
        help="draw accuracy, loss and calibration error against the number of members",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--data", type=command_line.path, metavar="DIR", help="where the four IDX files are"
    )
    return parser
