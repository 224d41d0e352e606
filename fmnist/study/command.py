"""The command line ``python -m fmnist.study``: trains every configuration of a study file."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fmnist.utils import command_line, interpreter, passwords, patience, runtime
from fmnist.utils.errors import UserError

PROG = "fmnist.study"


def main(argv: Sequence[str]) -> int:
    """Run a study.

    Args:
        argv: the arguments of the command line.

    Returns:
        The exit status: 0, or 1 if a trial failed.

    Raises:
        UserError: The study, the data, the storage, the device or the folder cannot be used.
    """
    parser = command_line.study_parser(
        PROG, "Train every configuration of a study file as vmapped lanes."
    )
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna's storage (default: sqlite, OUT/study.db)"
    )
    parser.add_argument(
        "--max-lanes",
        type=lambda text: None if text == "auto" else command_line.positive(text),
        metavar="N|auto",
        help="train at most this many configurations at once (default: as memory allows)",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="train again the trials that diverged; they diverge again unless something outside "
        "the study has changed, such as the device or a version",
    )
    parser.add_argument(
        "--wait",
        type=lambda text: 0 if text == "0" else command_line.positive(text),
        default=int(patience.SECONDS),
        metavar="SECONDS",
        help="wait this long for a locked storage or a full disk (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, train nothing")
    args = parser.parse_args(argv)
    interpreter.need_torch("study")
    runtime.prepare()
    if runtime.address_space_is_limited():
        _load_libraries()

    from fmnist.config import loading
    from fmnist.reports.outcome import print_outcome
    from fmnist.reports.terminal import make_progress
    from fmnist.rundir import places
    from fmnist.study.run import run_study
    from fmnist.utils.device import find_device

    config = loading.load_study(args.study, overrides=args.set, epochs=args.epochs)
    config, out, note = places.Place(config, args.out, "") if args.out else places.place(config)
    remarks = [text for text in (note, loading.without_grid(config)) if text]
    if args.dry_run:
        from fmnist.study.plan import plan

        planned = plan(config, out, args.max_lanes, find_device(args.device))
        print(*remarks, planned, sep="\n")
        return 0
    command_line.outlive_output("the study")
    with make_progress(args.quiet) as progress:
        for remark in remarks:
            progress.message(remark)
        results = run_study(
            config,
            out,
            storage=args.storage,
            data=args.data,
            device=args.device,
            max_lanes=args.max_lanes,
            retry_failed=args.retry_failed,
            wait=args.wait,
            command=command_line.command(PROG, map(passwords.starred, argv)),
            progress=progress,
        )
    if not args.quiet:
        print_outcome(config, results, out, args.storage)
    return int(any(result.state != "COMPLETE" for result in results))


def _load_libraries() -> None:
    """Load libraries that are otherwise loaded later, when the address space may be full.

    Raises:
        UserError: The limit of the address space has no room for the libraries.
    """
    try:
        for name in (
            "reports.publish",
            "functional.kernels.cpu.blocks",
            "functional.kernels.cpu.adam",
        ):
            importlib.import_module(f"fmnist.{name}")
    except (ImportError, OSError, MemoryError) as error:
        reason = "the limit of the address space (ulimit -v) has no room for PyTorch and Numba"
        raise UserError(reason) from error
