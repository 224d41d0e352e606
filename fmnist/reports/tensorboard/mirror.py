"""Mirrors a study to TensorBoard: a run for each trial, scalars of each epoch, HParams, a layout.

It needs neither TensorFlow nor ``SummaryWriter.add_hparams``, which would add a timestamped run for
each trial.

Nothing lists the columns of the HParams table: TensorBoard would take the first such list that it
finds, and show several studies with the columns of one. Without a list it takes the columns of all
trials, each with the type of its values.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import custom_scalars, text

from fmnist.config.results import EpochMetrics, Point, TrialResult, Value
from fmnist.config.study import StudyConfig
from fmnist.reports.markdown import escape
from fmnist.reports.tensorboard import runs
from fmnist.reports.words import held_out, protocol_note
from fmnist.tuning import events
from fmnist.utils.patience import repeated

FAILED = "failed"
"""The tag of the reason of a failure."""

FIELDS = {bool: "bool_value", float: "number_value", str: "string_value"}
"""Type of a column of the HParams table -> the field of its values."""

_serial = itertools.count()


class TensorBoardMirror(contextlib.AbstractContextManager["TensorBoardMirror"]):
    """Writes a study to ``root``, where ``tensorboard --logdir root`` shows it.

    An event file is open only during an append, so that hundreds of lanes hold no descriptors and
    no writer threads.

    A running trial has a session start, no end and no test metrics; TensorBoard shows its status as
    UNKNOWN. STATUS_RUNNING is not used because it cannot be changed later: the status is metadata
    of a tag, and both of TensorBoard's loaders keep the first metadata that they read of a tag. A
    TensorBoard that had read RUNNING would never show how the trial ended.

    Args:
        root: the folder of the runs; made where needed.
        study: the study.
    """

    def __init__(self, root: Path, study: StudyConfig) -> None:
        self.root = Path(root)
        self._study = study
        self._types = {key: _type_of(values) for key, values in study.grid.items()}
        self._running: dict[int, _EventFile] = {}
        self.root.mkdir(exist_ok=True)
        self._folders = runs.folders(self.root)
        self._write_layout()

    def __call__(self, event: events.Event) -> None:
        """Write what a study that trains has come to."""
        match event:
            case events.GroupStarted():
                for trial in event.trials:
                    past = event.histories.get(trial.number, ())
                    self.start(trial.number, trial.point, past)
            case events.EpochFinished():
                for number, metrics in event.metrics.items():
                    self.epoch(number, event.epoch, metrics)
            case events.TrialFinished():
                self.finish(event.result)

    def start(self, number: int, point: Point, history: Sequence[EpochMetrics] = ()) -> None:
        """Begin a trial's run, in place of an earlier run of the same configuration.

        Args:
            number: the trial's number.
            point: its configuration.
            history: the epochs that it has trained already.
        """
        folder = self.root / runs.run_name(self._study, number, point)
        for earlier in self._folders[runs.point_name(point)]:
            _remove_events(earlier)
            if earlier != folder:
                with contextlib.suppress(OSError):  # another file is in it
                    earlier.rmdir()
        self._folders[runs.point_name(point)] = [folder]
        run = self._running[number] = _EventFile(folder)
        run.append(
            # It makes a TensorBoard that is open drop what it has read of the removed run.
            Event(session_log=SessionLog(status=SessionLog.START), step=0),
            Event(summary=_hparams_summary(metadata.SESSION_START_INFO_TAG, self._session(point))),
            *(_scalars(step, metrics) for step, metrics in enumerate(history, start=1)),
        )

    def epoch(self, number: int, epoch: int, metrics: EpochMetrics) -> None:
        """Write the metrics of an epoch, counted from 1, of a started trial."""
        self._running[number].append(_scalars(epoch, metrics))

    def finish(self, result: TrialResult) -> None:
        """Write test metrics and status; all epochs, too, when the trial was not started."""
        if result.number not in self._running:
            self.start(result.number, result.point, result.history)
        complete = result.state == "COMPLETE"
        status = api_pb2.STATUS_SUCCESS if complete else api_pb2.STATUS_FAILURE
        end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        # NaN means that the test set was not evaluated.
        test = {"loss/test": result.test_loss, "accuracy/test": result.test_accuracy}
        known = {tag: value for tag, value in test.items() if math.isfinite(value)}
        failure = [Event(summary=text(FAILED, escape(result.reason)))] if not complete else []
        self._running.pop(result.number).append(
            Event(summary=_values(known), step=len(result.history)),
            *failure,
            Event(summary=_hparams_summary(metadata.SESSION_END_INFO_TAG, data)),
        )

    def repair(self, result: TrialResult) -> None:
        """Write the run of a trial that ended again, unless it is complete."""
        names = (runs.run_name(self._study, result.number, result.point, m) for m in runs.MARKS)
        if not any(metadata.SESSION_END_INFO_TAG in _tags(self.root / name) for name in names):
            self.finish(result)

    def close(self) -> None:
        """Forget the running trials; TensorBoard still shows them as UNKNOWN."""
        self._running.clear()

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _session(self, point: Point) -> plugin_data_pb2.HParamsPluginData:
        """A row of the HParams table, which has the name of its run."""
        info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        note = protocol_note(self._study)
        # Without a column, TensorBoard shows no metrics.
        values: Point = {"note": note, **point} if note else point or {"study": self._study.name}
        for key, value in values.items():
            kind = self._types.get(key, str)
            setattr(info.hparams[key], FIELDS[kind], kind(value))
        return plugin_data_pb2.HParamsPluginData(session_start_info=info)

    def _write_layout(self) -> None:
        """Write the layout to the root, unless it is there."""
        layout = _layout(self._study)
        digest = hashlib.sha256(layout.SerializeToString(deterministic=True)).hexdigest()[:16]
        # The file's name holds a hash of its content.
        suffix = f".layout-{digest}"
        known = any(self.root.glob(f"*tfevents*{suffix}"))
        if known and layout.value[0].tag in _tags(self.root):
            return
        _remove_events(self.root)
        _EventFile(self.root, suffix).append(
            # It makes a TensorBoard that is open drop the layout that it has read.
            Event(session_log=SessionLog(status=SessionLog.START), step=0),
            Event(summary=layout),
        )


class _EventFile:
    """A new event file, written in one piece and closed at each append."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        folder.mkdir(exist_ok=True)
        # TensorBoard reads a folder's files in the order of their names, so the time is first. The
        # process and a serial number make names of the same second unique.
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_serial):06d}"
        self._path = folder / f"events.out.tfevents.{stamp}{suffix}"
        self.append(Event(file_version="brain.Event:2"))

    def append(self, *events: Event) -> None:
        buffer = io.BytesIO()
        records = RecordWriter(buffer)
        now = time.time()
        for event in events:
            event.wall_time = now
            records.write(event.SerializeToString())
        content = buffer.getvalue()
        size = self._path.stat().st_size if self._path.exists() else 0

        def write() -> None:
            # One write; when a full disk takes a part, a buffered file raises, and a raw one not.
            with self._path.open("ab", buffering=len(content) + 1) as file:
                file.truncate(size)  # a part that an earlier try wrote
                file.write(content)

        repeated(write)


def _tags(folder: Path) -> set[str]:
    """The tags of the events in ``folder``; none when one of its files is damaged."""
    tags: set[str] = set()
    for path in folder.glob("*tfevents*"):
        try:
            reader = PyRecordReader_New(str(path))
            with contextlib.suppress(errors.OutOfRangeError):  # the end of the file
                while True:
                    reader.GetNext()
                    tags.update(v.tag for v in Event.FromString(reader.record()).summary.value)
        except (errors.OpError, DecodeError):
            return set()
    return tags


def _remove_events(folder: Path) -> None:
    """Remove the event files directly in ``folder``, and no other file."""
    for path in folder.glob("*tfevents*"):
        path.unlink(missing_ok=True)


def _scalars(step: int, metrics: EpochMetrics) -> Event:
    # TensorBoard marks NaN and infinity in the curve.
    values = {
        "loss/train": metrics.train_loss,
        "loss/validation": metrics.validation_loss,
        "accuracy/train": metrics.train_accuracy,
        "accuracy/validation": metrics.validation_accuracy,
    }
    return Event(summary=_values(values), step=step)


def _values(values: Mapping[str, float]) -> Summary:
    return Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in values.items()])


def _hparams_summary(tag: str, data: plugin_data_pb2.HParamsPluginData) -> Summary:
    described = metadata.create_summary_metadata(data)
    return Summary(
        value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)],
    )


def _layout(study: StudyConfig) -> Summary:
    """The custom-scalars dashboard: training and validation in one chart, for every run."""
    title = f"training and {held_out(study)}"
    # TensorBoard matches these regular expressions with the tags of each run.
    charts = {
        f"{kind}: {title}": ["Multiline", [f"^{kind}/train$", f"^{kind}/validation$"]]
        for kind in ("loss", "accuracy")
    }
    summary = custom_scalars({title + protocol_note(study, " ({})"): charts})
    summary.value[0].metadata.data_class = DATA_CLASS_TENSOR
    return summary


def _type_of(values: Sequence[Value]) -> type:
    """The type of an HParams column of these values: it has one."""
    kinds = {type(value) for value in values}
    return bool if kinds == {bool} else float if kinds <= {int, float} else str
