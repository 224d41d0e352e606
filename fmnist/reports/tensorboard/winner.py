"""The winner's run in TensorBoard: pictures, precision-recall curves, features and graph.

No other trial has them, as they are large. The run lies beside the trials' runs and has no
hyperparameters, so that it is no row of the HParams table.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from fmnist.reports import figures, words
from fmnist.reports.confusion import integers
from fmnist.reports.findings import Findings
from fmnist.reports.markdown import escape
from fmnist.rundir import files

_log = logging.getLogger(__name__)

WINNER_RUN = "_winner"
"""The run's name. An underscore sorts before every letter, so that the run is above the trials."""

EMBEDDING = "penultimate-layer"
EMBEDDED = 1000
"""Test images in the projector, at most; the browser computes their layout."""


def write_winner(out: Path, findings: Findings, network: torch.nn.Module) -> Path:
    """Write the winner's run in ``out/tensorboard``, in place of one that is there.

    Args:
        out: the run's folder; ``figures/confusion.png`` in it must be drawn.
        findings: what the study found, with a winner and its outputs on the test set.
        network: the winner as a module, for the graph; its mode is left as it was.

    Returns:
        The folder of the winner's run.

    Raises:
        ValueError: The outputs and the test set differ in their number of examples.
    """
    assert findings.winner is not None
    assert findings.outputs is not None
    study, test = findings.config, findings.dataset.test
    probabilities, features = findings.outputs
    sizes = {len(test.images), len(test.labels), len(probabilities), len(features)}
    if len(sizes) > 1:
        raise ValueError(f"images, labels, probabilities and features differ: {sorted(sizes)}")
    images, labels = test.images.cpu().numpy(), integers(test.labels.cpu())
    chances = probabilities.detach().cpu().double().numpy()
    names = [words.one_line(name) for name in findings.classes]
    chosen, predicted = balanced(labels, EMBEDDED), chances.argmax(axis=1)
    facts = [
        [names[labels[i]], names[predicted[i]], "yes" if labels[i] == predicted[i] else "no", i]
        for i in chosen.tolist()
    ]
    said = (
        words.winner_sentence(study, findings.winner, findings.comparison, len(test.labels)),
        words.noise_sentence(study, findings.comparison),
        words.protocol_sentences(study),
    )
    root = out / "tensorboard"
    root.mkdir(exist_ok=True)
    # Written below the root, a run that is not finished would show in TensorBoard.
    with files.scratch_folder(out) as scratch:
        pictures = {
            "sample images": figures.samples(images, labels, names, scratch / "samples.png"),
            "surest mistakes": figures.mistakes(
                images, labels, chances, names, scratch / "mistakes.png", study
            ),
            "confusion matrix": out / "figures" / "confusion.png",
        }
        # purge_step makes a TensorBoard that is open drop what it has read of the old run.
        with _quiet_writer(), closing(SummaryWriter(scratch / "run", purge_step=0)) as writer:
            writer.add_text("winner", "\n\n".join(escape(text) for text in said if text), 0)
            for tag, path in pictures.items():
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                writer.add_image(f"test set/{tag}", pixels, 0, dataformats="HWC")
            for index, name in enumerate(names):
                tag = f"precision-recall/{name}"
                writer.add_pr_curve(tag, labels == index, chances[:, index], 0)
            writer.add_embedding(
                # The file is decimal text: five decimals suffice for a plot and halve its size.
                features.detach().cpu()[torch.from_numpy(chosen)].double().numpy().round(5),
                metadata=facts,
                metadata_header=["class", "predicted class", "right", "test image"],
                # Dark on white: the projector tints white with the colour of the class.
                label_img=torch.from_numpy(255 - images[chosen]).float() / 255,
                tag=EMBEDDING,
            )
            _write_graph(writer, network)
        run = root / WINNER_RUN
        if run.exists():
            run.rename(scratch / "old")
        (scratch / "run").rename(run)
    return run


def balanced(labels: Any, count: int) -> NDArray[np.intp]:
    """Choose the first examples of each class, the same number of each.

    Args:
        labels: integers ``[N]``.
        count: how many to choose, at most.

    Returns:
        Indices in ascending order.
    """
    true = integers(labels)
    present = np.unique(true)
    share = count // max(len(present), 1)
    chosen = [np.flatnonzero(true == label)[:share] for label in present]
    return np.sort(np.concatenate([np.empty(0, dtype=np.intp), *chosen]))


@contextmanager
def _quiet_writer() -> Iterator[None]:
    """Print no traceback of an OSError in the writer's thread; the writer raises it again here."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _write_graph(writer: SummaryWriter, network: torch.nn.Module) -> None:
    """Write the module's graph, traced with one image."""
    parameter = next(network.parameters())
    image = torch.zeros(1, 1, 28, 28, dtype=parameter.dtype, device=parameter.device)
    with warnings.catch_warnings(), torch.no_grad():
        # SummaryWriter.add_graph traces with TorchScript, which still works.
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", r"`torch\.jit\.", category)
        try:
            writer.add_graph(network, image)
        except Exception as error:  # TorchScript cannot trace every model of a user
            reason = " ".join(str(error).split())[:200]
            _log.warning("TensorBoard shows no graph of the winner (%s)", reason)
