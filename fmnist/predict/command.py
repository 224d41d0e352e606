"""The command line ``python -m fmnist.predict``: predicts the classes of pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist.inference import judging
from fmnist.inference.judging import Item
from fmnist.predict import inputs
from fmnist.rundir import found
from fmnist.utils import command_line, interpreter, runtime
from fmnist.utils.errors import UserError

if TYPE_CHECKING:
    from fmnist.reports.seen import Seen

PROG = "fmnist.predict"
UNLIKE = "looks like nothing it was trained on"
UNLIKE_OBJECT = "no single object found that looks like what it was trained on"

LIKELIEST = 3
NAME_WIDTH = 40

_ABOUT = """\
An IMAGE is a PNG, JPEG, GIF, BMP or WebP file, or a folder: then its files with the ending of such
a format are predicted, without those of folders in it. A picture has at most 64 megapixels, a JPEG
256, a WebP 32. It is turned upright, made grey, cut to the object that stands out from its ground,
turned by up to 15 degrees if it then looks more like what the network was trained on, and scaled
to 28x28, a light object on dark as in the data set: one that is darker than its ground is inverted.
The output says so, and where no single object was found: then the whole picture is scaled, and the
prediction means little. --show draws what was cut out and what it became; it replaces no file but
one that it has made.

What looks less like what the network was trained on than all but 1 % of the validation images do
is told, too. In both cases the probabilities are drawn towards equal ones.

The exit status is 0; 2 when a file could not be used, with a line on stderr that says which and
why. The other files are predicted all the same.
"""


def main(argv: Sequence[str]) -> int:
    """Predict the classes of pictures and print them.

    Args:
        argv: the arguments of the command line.

    Returns:
        The exit status: 0, or 2 when an input cannot be used.

    Raises:
        UserError: No input is named, or the run has no model that can be used.
    """
    args = _parser().parse_intermixed_args(argv)
    interpreter.need_torch("predict")
    paths = [Path(path) for path in args.images]
    numbers = [word.strip() for text in args.test for word in text.split(",")]
    if not paths and not numbers:
        raise UserError("there is nothing to predict: name an IMAGE, or give --test N")
    inputs.refuse_runs(paths)
    run = Path(args.run) if args.run else found.latest(found.FINISHED)
    runtime.prepare()
    if args.show:
        from fmnist.reports import seen

        seen.check(args.show)

    from fmnist.data.fashion_mnist import CLASS_NAMES
    from fmnist.inference import ensembles, trained

    saved = ensembles.read(run) if run.is_file() else None
    if saved:
        trials, known = saved.members, saved.classes
    else:
        trials = trained.ensemble(run) if args.ensemble else [trained.best_model(run)]
        known = trained.class_names(run) or CLASS_NAMES
    failures, classes = inputs.Failures(), known
    if classes != CLASS_NAMES and numbers:
        reason = f"--test is for runs of Fashion-MNIST; {run} has other classes"
        failures.add("test", ",".join(numbers), inputs.one_line(reason))
        numbers = []
    items = [
        *inputs.pictures(paths, args.invert, failures, seen.MOST if args.show else 0),
        *inputs.images_of_test_set(numbers, args.data, failures),
    ]
    items = judging.turn_upright(run, items)
    probabilities = judging.stated(trials, items)
    name = f"trial {trials[0].number}, {trials[0].label}"
    which = ", ".join(str(trial.number) for trial in trials)
    source = f"mean of {len(trials)} trials ({which})" if args.ensemble or saved else name
    title = inputs.one_line(f"{run}: {source}")
    if args.json:
        document = {
            "run": str(run),
            "trials": [trial.number for trial in trials],
            "predictions": [
                _record(item, row, classes) for item, row in zip(items, probabilities, strict=True)
            ],
            "errors": failures,
        }
        print(json.dumps(document, indent=2, allow_nan=False))
    elif items:
        print("\n".join([title, *_table(items, probabilities, classes)]))
    if items and args.show:
        first = zip(items[: seen.MOST], probabilities, strict=False)
        cells = [_seen(item, row, classes) for item, row in first]
        seen.write_seen(args.show, title, cells, len(items))
        if len(items) > len(cells) and not args.json:
            print(inputs.one_line(f"{args.show}: {seen.left_out(len(cells), len(items))}"))
    return 2 if failures else 0


def _likeliest(row: Sequence[float]) -> list[int]:
    """Return the :data:`LIKELIEST` labels, the likeliest first; equal ones by number."""
    return sorted(range(len(row)), key=lambda label: -row[label])[:LIKELIEST]


def _record(item: Item, row: Sequence[float], classes: Sequence[str]) -> dict[str, Any]:
    """The entry of a prediction in the JSON document."""
    record = dict(item.about)
    best = _likeliest(row)
    if "label" in record:
        record |= {"class": classes[record["label"]], "right": best[0] == record["label"]}
    record["likeliest"] = [
        {"label": label, "class": classes[label], "probability": row[label]} for label in best
    ]
    record["probabilities"] = row
    return record


def _table(
    items: Sequence[Item], probabilities: Sequence[Sequence[float]], classes: Sequence[str]
) -> list[str]:
    """A line for each item: its name, the likeliest classes, a remark."""
    widest = max(map(len, classes))
    width = min(NAME_WIDTH, max(len(item.name) for item in items))
    lines = []
    for item, row in zip(items, probabilities, strict=True):
        best = _likeliest(row)
        cells = [f"{classes[label]:<{widest}} {row[label]:>6.1%}" for label in best]
        remark = _remark(item, best[0], classes)
        lines.append("   ".join([f"{item.name:<{width}}", *cells, remark]).rstrip())
    return lines


def _remark(item: Item, best: int, classes: Sequence[str]) -> str:
    """Say whether the prediction is right, what was done, and what to doubt."""
    about, said = item.about, []
    if "label" in about:
        right = best == about["label"]
        said.append("right" if right else f"wrong: {classes[about['label']]}")
    if about.get("unlike_training"):
        said.append(UNLIKE_OBJECT if about.get("cut") == "object" else UNLIKE)
    if about.get("cut") == "whole":
        said.append("no single object found")
    if about.get("turned"):
        said.append(f"turned by {abs(about['turned'])}°")
    if about.get("inverted"):
        said.append("inverted: it was dark on light")
    return "; ".join(said)


def _seen(item: Item, row: Sequence[float], classes: Sequence[str]) -> Seen:
    """Describe an item for the sheet of ``--show``."""
    from fmnist.reports.seen import Seen

    assert item.original is not None
    best = _likeliest(row)[0]
    remark = _remark(item, best, classes)
    return Seen(
        name=item.name,
        picture=item.original,
        box=item.box,
        pixels=item.views[0, 0].numpy(),
        answer=f"{classes[best]}  {row[best]:.1%}",
        remark=remark,
        is_doubtful=item.about.get("cut") == "whole"
        or bool(item.about.get("unlike_training"))
        or remark.startswith("wrong"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(
        prog=command_line.called(PROG),
        usage=f"{command_line.called(PROG)} [options] [IMAGE ...]",
        description="Which class of Fashion-MNIST is in a picture? Prints the three likeliest.",
        epilog=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="a picture or a folder of pictures; see below"
    )
    parser.add_argument(
        "--run",
        metavar="RUN",
        help="a folder that `python -m fmnist.study` left (default: the latest in runs/), or a "
        "file that `python -m fmnist.ensemble --save` wrote, with which nothing is turned or told "
        "to look like nothing it was trained on",
    )
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="N[,N...]",
        help="predict these images of the test set, counted from 0; may be repeated",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="average the probabilities of every complete trial, or of the winner's seeds when the "
        "seed is an axis of the grid (default: the winner alone)",
    )
    parser.add_argument(
        "--invert",
        choices=("yes", "no", "auto"),
        default="auto",
        help="make light dark and dark light (default: auto, when the border is light)",
    )
    parser.add_argument(
        "--show",
        type=command_line.path,
        metavar="FILE.png",
        help="draw what the network saw beside each picture; of many, the first 48",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--data",
        type=command_line.path,
        metavar="DIR",
        help="for --test: where the four IDX files are",
    )
    return parser
