"""The command line ``python -m fmnist.study``: reads a study file and wires the rooms together."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist import cli, passwords, process
from fmnist.errors import UserError
from fmnist.phases import Phases
from fmnist.signals import Stop

if TYPE_CHECKING:
    import optuna
    import torch

    from fmnist.config import StudyConfig
    from fmnist.data import Dataset
    from fmnist.results import TrialResult
    from fmnist.search import Splits
    from fmnist.views.progress import Progress

PROG = "fmnist.study"


def main(argv: Sequence[str]) -> int:
    """Run a study from the command line; 0 when all is well, 1 when a trial failed."""
    parser = cli.study_parser(PROG, "Train every configuration of a study file as vmapped lanes.")
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna's storage (default: sqlite, OUT/study.db)"
    )
    parser.add_argument(
        "--max-lanes",
        type=cli.positive_or_auto,
        metavar="N|auto",
        help="train at most this many configurations at once (default: as memory allows)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="train again the trials that diverged"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, train nothing")
    args = parser.parse_args(argv)
    passwords.cover_arguments()
    process.prepare()
    if process.address_space_is_limited():
        _load_libraries()

    from fmnist import config as configs
    from fmnist.views.progress import make_progress
    from fmnist.views.report import print_outcome

    config = configs.load(args.study, overrides=args.set, epochs=args.epochs)
    out = Path(args.out) if args.out else Path("runs") / config.name
    if args.dry_run:
        print(plan(config, args.max_lanes, find_device(args.device)))
        return 0
    with make_progress(args.quiet) as progress:
        results = run_study(
            config,
            out,
            storage=args.storage,
            data=args.data,
            device=args.device,
            max_lanes=args.max_lanes,
            retry_failed=args.retry_failed,
            command=passwords.starred(cli.command(PROG, argv)),
            progress=progress,
        )
    if not args.quiet:
        print_outcome(config, results, out, args.storage)
    return int(any(result.state != "COMPLETE" for result in results))


def _load_libraries() -> None:
    """Load now what else is loaded when it is used, and might not fit in any more then.

    Raises:
        UserError: when it does not fit in.
    """
    try:
        for name in ("publish", "functional.kernels.cpu_loops", "functional.kernels.adam_loops"):
            importlib.import_module(f"fmnist.{name}")
    except (ImportError, OSError, MemoryError) as error:
        what = "the limit of the address space (ulimit -v) has no room for PyTorch and Numba"
        raise UserError(what) from error


def plan(config: StudyConfig, max_lanes: int | None, device: torch.device) -> str:
    """What a run would train, a line a group."""
    from fmnist import search
    from fmnist.results import label

    lines = [f"study {config.name}: {config.size} trials of {config.epochs} epochs"]
    trials = [(point, config.trial(point)) for point in config.points()]
    most = max_lanes or search.lanes_that_fit([trial for _, trial in trials], device)
    groups = search.chunks(trials, lambda trial: trial[1].static, most)
    for index, group in enumerate(groups, 1):
        static = group[0][1].static
        lines.append(f"group {index} of {len(groups)}: batch size {static.batch_size}")
        lines += [f"  lane {lane}: {label(point)}" for lane, (point, _) in enumerate(group)]
    return "\n".join(lines)


def find_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is the first GPU where there is one.

    Raises:
        UserError: when there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not (index.isascii() and index.isdigit())):
        raise UserError(f"--device {name!r}: allowed are auto, cpu, cuda and cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise UserError(f"--device {name!r}: this machine has {count} CUDA devices that torch sees")
    return torch.device(name)


def splits(config: StudyConfig, dataset: Dataset, device: torch.device) -> Splits:
    """Training, validation and test examples on the device; the last two are one if holdout = 0."""
    from fmnist.data import holdout_split
    from fmnist.functional.types import Split
    from fmnist.search import Splits

    training, validation = holdout_split(dataset.train, config.holdout)
    training, validation, test = (
        Split(split.images.to(device), split.labels.to(device))
        for split in (training, validation, dataset.test)
    )
    return Splits(training, test if config.validation_is_test else validation, test)


def run_study(
    config: StudyConfig,
    out: str | Path,
    *,
    storage: str | None = None,
    data: str | Path | None = None,
    dataset: Dataset | None = None,
    device: str = "auto",
    max_lanes: int | None = None,
    retry_failed: bool = False,
    command: str = "fmnist.run_study",
    progress: Progress | None = None,
) -> list[TrialResult]:
    """Run a study, or go on with one that was stopped, and write what it found.

    Args:
        config: the study.
        out: the folder of this run; made where needed.
        storage: an Optuna storage URL; SQLite in ``out`` by default.
        data: a folder with the four IDX files; found or fetched by default.
        dataset: use this one instead of loading.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        max_lanes: how many configurations train at once, at most; by default as memory allows.
        retry_failed: train again the trials that diverged.
        command: what the report gives as the command that made it.
        progress: told of what happens; nobody by default.

    Returns:
        The results of every grid point, by trial number.

    Raises:
        UserError: when the study, the data or the folder cannot be used.
    """
    import optuna

    from fmnist import checksums, files, grid, lock, provenance, trouble
    from fmnist import data as sources
    from fmnist.views.progress import make_progress

    out, progress = Path(out), progress or make_progress(quiet=True)
    url = storage or f"sqlite:///{out / 'study.db'}"
    where = find_device(device)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with lock.holding(out), _LogTo(progress), Stop() as stop, trouble.told(out, url):
        _claim(out, config)
        files.sweep(out)  # not before it is known to be ours
        study = grid.open_study(config, url)
        done = grid.results(study, config)
        failed = sum(result.state != "COMPLETE" for result in done)
        retry = retry_failed and failed > 0
        whole = len(done) == config.size and not grid.unfinished(study)
        if whole and not retry:
            progress.message(f"study {config.name} in {out} is complete: nothing to train")
            if failed:
                progress.message(f"{failed} trials failed; --retry-failed trains them again")
            if checksums.wrong(out) == []:
                return done
            _tell_of_lost(out, config, done, progress)
        phases = Phases(study.user_attrs.get(PHASES))
        with phases("reading the data"):
            dataset = dataset or sources.load(data)
        facts = provenance.facts(command, where, 0.0, dataset.source)
        _train(study, config, dataset, out, where, max_lanes, progress, facts, phases, stop, retry)
        results = grid.results(study, config)
        wall = phases.seconds.get(TRAINING, 0.0)
        facts = provenance.facts(command, where, wall, dataset.source)
        if whole and not retry:  # what is only drawn again is of the day it was trained
            facts = study.user_attrs.get(FACTS, facts)
        else:
            study.set_user_attr(FACTS, facts)
        with phases("drawing the views"):
            from fmnist import publish  # seaborn costs a second of start-up

            publish.publish(out, config, results, dataset, facts, storage, study, phases)
        study.set_user_attr(PHASES, phases.seconds)
        return results


def _tell_of_lost(
    out: Path, config: StudyConfig, results: Sequence[TrialResult], progress: Progress
) -> None:
    """Say what of a complete study is made anew, and what cannot be.

    Raises:
        UserError: when the winner's parameters are not what they were.
    """
    from fmnist import checkpoint, checksums
    from fmnist.results import winner

    lost = checksums.wrong(out)
    if lost is None:
        return  # it was killed before all was written
    models = {
        str(checkpoint.model_path(out, result.number).relative_to(out)): result
        for result in results
    }
    best = winner(results, config.metric)
    for name in sorted(set(lost) & set(models)):
        said = f"{out / name} is missing or damaged, and only training brings it back"
        if best and models[name].number == best.number:
            raise UserError(f"{said}: it is the winner's; choose another --out")
        progress.message(said)
    if rest := sorted(set(lost) - set(models)):
        progress.message(f"missing or damaged, and made anew: {', '.join(rest)}")


FACTS = "fmnist:provenance"
PHASES = "fmnist:seconds_by_phase"
TRAINING = "training and evaluation"


def _train(
    study: optuna.Study,
    config: StudyConfig,
    dataset: Dataset,
    out: Path,
    device: torch.device,
    max_lanes: int | None,
    progress: Progress,
    facts: Mapping[str, str],
    phases: Phases,
    stop: Stop,
    retry_failed: bool,
) -> None:
    """Train what is pending and mirror every event before Optuna hears of it."""
    from fmnist import checkpoint, grid, loop, memory, search
    from fmnist.results import label
    from fmnist.resume import Keeper, group_of
    from fmnist.views.dashboard import DashboardMirror
    from fmnist.views.tensorboard import TensorBoardMirror

    examples = splits(config, dataset, device)
    progress.message(f"device {device}")
    said = ""
    keeper = Keeper(out / "checkpoints")
    events = search.run(
        study,
        config,
        examples,
        max_lanes=max_lanes,
        keeper=keeper,
        stop=stop,
        retry_failed=retry_failed,
    )
    done = grid.results(study, config)
    board = DashboardMirror(
        study,
        config,
        out,
        provenance=facts,
        done=done,
        images=len(examples.training.labels),
    )
    with TensorBoardMirror(out / "tensorboard", config) as mirror:
        for result in done:
            mirror.mend(result)
        for event in phases.waiting_for(TRAINING, events):
            match event:
                case search.GroupStarted(index, total, trials, left, histories):
                    for trial in trials:
                        past = histories.get(trial.number, ())
                        mirror.start(trial.number, trial.point, past)
                    labels = {trial.number: label(trial.point) for trial in trials}
                    images = len(examples.training.labels) * len(trials)
                    progress.group(index, total, labels, config.epochs, images, left)
                    group = group_of([trial.config for trial in trials])
                    how = loop.convolution(group, device)
                    if how != said:
                        progress.message(f"convolutions of lanes: {how}")
                    if how == "blocks" and not said and not process.kernels_are_compiled():
                        progress.message("compiling the kernels, once: about half a minute")
                    said = how
                case search.EpochFinished(epoch, metrics, seconds):
                    for number, values in metrics.items():
                        mirror.epoch(number, epoch, values)
                    progress.epoch(epoch, metrics, seconds)
                case search.TrialFinished(result, params, state):
                    path = checkpoint.model_path(out, result.number)
                    checkpoint.save_model(path, params, state)
                    mirror.finish(result)
                    board.finish(result, path)
                    progress.trial(result)
                    study.set_user_attr(PHASES, phases.seconds)
                case search.LanesHalved(lanes, epoch):
                    progress.message(
                        f"memory ran out: {lanes} lanes go on in two halves from epoch {epoch}"
                    )
    keeper.clear()
    memory.release()  # drawing loads libraries


def _claim(out: Path, config: StudyConfig) -> None:
    """Mark the folder as this study's.

    Raises:
        UserError: when it is another's.
    """
    from fmnist import config as configs
    from fmnist import files

    path = out / "study.toml"
    if not path.exists():
        files.write_text(path, config.to_toml())
        return
    changes = configs.differences(configs.load(path), config)
    if changes:
        raise UserError(
            f"--out {out} holds another study ({'; '.join(changes)}); "
            "choose another --out, or delete that folder"
        )


class _LogTo(logging.Handler):
    """While in it, what the package logs goes to the progress display."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._logger = logging.getLogger("fmnist")

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.message(record.getMessage())

    def __enter__(self) -> None:
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


if __name__ == "__main__":
    cli.run(main)
