"""The command line ``python -m fmnist.reference``: trains a study file with the reference model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmnist.utils import command_line, interpreter, runtime

if TYPE_CHECKING:
    from fmnist.config.results import Point, TrialResult
    from fmnist.config.study import StudyConfig
    from fmnist.rundir.folder import RunFolder
    from fmnist.tuning.scheduler import Splits

PROG = "fmnist.reference"


def main(argv: Sequence[str]) -> int:
    """Train the configurations of a study one after the other with torch.nn.

    It writes no snapshots: after an interruption it starts from the beginning.

    Args:
        argv: the arguments of the command line.

    Returns:
        The exit status: 0, or 1 if a trial failed.

    Raises:
        UserError: The study, the data, the device or the folder cannot be used.
    """
    parser = command_line.study_parser(
        PROG, "Train every configuration of a study file, one after the other, with torch.nn."
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, train nothing")
    args = parser.parse_args(argv)
    interpreter.need_torch("reference")
    runtime.prepare()

    from fmnist.config import loading
    from fmnist.config.errors import ConfigError
    from fmnist.config.settings import IMAGES
    from fmnist.data import fashion_mnist
    from fmnist.functional.types import ModelConfig
    from fmnist.reports import publish
    from fmnist.reports.findings import Findings
    from fmnist.reports.outcome import print_outcome
    from fmnist.reports.terminal import outcome
    from fmnist.reports.words import held_out
    from fmnist.rundir import places
    from fmnist.rundir.folder import opened_for_reference
    from fmnist.study.run import shown_to, splits
    from fmnist.tuning import storage_errors
    from fmnist.utils import provenance
    from fmnist.utils.device import cuda_arithmetic, find_device

    config = loading.load_study(args.study, overrides=args.set, epochs=args.epochs)
    if not isinstance(config.model, ModelConfig):
        reason = "is not the built-in network, the only one that there is in torch.nn, too"
        raise ConfigError(reason, "factory", config.model.factory)
    if "bfloat16" in config.values("precision"):
        raise ConfigError("is not what the reference computes in", "precision", "bfloat16")
    trials = map(config.trial, config.points())
    last = {(t.batch_size, getattr(t.model, "linear_norm", False)) for t in trials}
    if any(norm and (IMAGES - config.holdout) % size == 1 for size, norm in last):
        reason = "leaves a last batch of one image, which BatchNorm1d of torch.nn refuses"
        raise ConfigError(reason, "batch_size", also=("linear_norm",))
    if config.keep != "last":
        raise ConfigError("is not what the reference keeps", "keep", config.keep)
    config, out, note = (
        places.Place(config, args.out, "") if args.out else places.place(config, reference=True)
    )
    remarks = [text for text in (note, loading.without_grid(config)) if text]
    if args.dry_run or not args.quiet:
        print("".join(f"{remark}\n" for remark in remarks), end="")
    if args.dry_run:
        print("\n".join(plan(config, out)))
        return 0
    device = find_device(args.device)
    command_line.outlive_output("the study")
    with storage_errors.translated(out), opened_for_reference(out, config) as folder:
        dataset = shown_to(config, fashion_mnist.load(args.data))
        examples = splits(config, dataset, device)
        began = time.perf_counter()
        results = []
        for number, point in enumerate(config.points()):
            trial = config.trial(point).model
            rounded = isinstance(trial, ModelConfig) and trial.precision == "tf32"
            with cuda_arithmetic(tf32=rounded):
                results.append(_train(folder, number, point, examples))
            if not args.quiet:
                result = results[-1]
                print(outcome(result, held_out(config)))
        wall = time.perf_counter() - began
        facts = provenance.facts(command_line.command(PROG, argv), device, wall, dataset.source)
        folder.seal(publish.publish(out, Findings(config, results, dataset, facts)), {})
    if not args.quiet:
        print_outcome(config, results, out, None)
    return int(any(result.state != "COMPLETE" for result in results))


def plan(config: StudyConfig, out: Path) -> list[str]:
    """Return the plan of a run: where it goes, and a line for each trial."""
    from fmnist.config.results import label

    trials = "1 trial" if config.size == 1 else f"{config.size} trials"
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    lines = [f"study {config.name}: {trials} of {epochs} each, with torch.nn, into {out}"]
    return lines + [f"  trial {n}: {label(point)}" for n, point in enumerate(config.points())]


def _train(
    folder: RunFolder,
    number: int,
    point: Point,
    examples: Splits,
) -> TrialResult:
    """Train and test one configuration, and save its parameters."""
    from fmnist.config.results import EpochMetrics, TrialResult
    from fmnist.functional.types import Metrics, ModelConfig
    from fmnist.reference import evaluate, fit_reference, from_module

    def numbers(metrics: Metrics) -> tuple[float, float]:
        return metrics.loss.item(), metrics.accuracy.item()

    trial = folder.config.trial(point)
    assert isinstance(trial.model, ModelConfig)
    began = time.perf_counter()
    history: list[EpochMetrics] = []
    reason = ""
    for epoch in fit_reference(
        trial.model,
        trial.optimizer.algorithm,
        trial.hyperparams,
        examples.training,
        examples.validation,
        batch_size=trial.batch_size,
        seed=trial.seed,
        epochs=folder.config.epochs,
        nesterov=trial.optimizer.nesterov,
        decay_biases=trial.optimizer.decay_biases,
        recipe=trial.training.recipe,
    ):
        metrics = EpochMetrics(*numbers(epoch.train), *numbers(epoch.validation))
        if not all(map(math.isfinite, metrics)):
            reason = f"the loss was not finite in epoch {epoch.epoch}"
            break
        history.append(metrics)
    test_loss = test_accuracy = math.nan
    if folder.config.test and not reason:
        test_loss, test_accuracy = numbers(evaluate(epoch.network, examples.test))
    folder.save_model(number, *from_module(epoch.network))
    return TrialResult(
        number=number,
        point=point,
        state="FAIL" if reason else "COMPLETE",
        history=tuple(history),
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        seconds=time.perf_counter() - began,
        reason=reason,
        window=folder.config.metric_window,
    )
