"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolagent.files import append
from toolagent.trackers.base import RunDescription, Tracker
from toolagent.trackers.metrics import flat_parameters


class TensorBoard(Tracker):
    """`DIR/tensorboard`: read by `tensorboard --logdir DIR`; a resumed run adds a file.

    Each event is one write. TensorBoard's own writer has a thread that ends for good, with a
    traceback, when a disk is full.
    """

    name = "tensorboard"
    background = False  # it waits for no network

    def __init__(self, folder: Path):
        # The names' order is that of the sessions.
        stem = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = folder / stem

    def check(self, resumed: str | None) -> None:
        """Refuses nothing: TensorBoard is a dependency, and the folder belongs to the run."""

    def start(self, run: RunDescription, resumed: str | None) -> str | None:
        """Begins a new event file, with the settings as a table on the tab 'Text'."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._write(0, file_version="brain.Event:2")
        self._write_settings(run)
        return None

    def _write_settings(self, run: RunDescription) -> None:
        """A Markdown table under CleanRL's tag, 'hyperparameters'."""
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.text.metadata import create_summary_metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        proto: Any = summary_pb2
        settings = {**flat_parameters(run.document), **run.tags}
        lines = [f"|{_cell(name)}|{_cell(value)}|" for name, value in settings.items()]
        table = "\n".join(["|setting|value|", "|-|-|", *lines])
        value = proto.Summary.Value(
            tag="hyperparameters",
            metadata=create_summary_metadata("The settings of the run", ""),
            tensor=make_tensor_proto([table.encode()]),
        )
        self._write(0, summary=proto.Summary(value=[value]))

    def go_back(self, step: int) -> None:
        """Readers of the folder drop what was written for later steps, in this file or another."""
        from tensorboard.compat.proto import event_pb2

        proto: Any = event_pb2
        # As `SummaryWriter(purge_step=...)` writes it: from this step on all is void.
        self._write(step + 1, file_version="brain.Event:2")
        self._write(step + 1, session_log=proto.SessionLog(status=proto.SessionLog.START))

    def log(self, metrics: Mapping[str, float], more: Mapping[str, float], step: int) -> None:
        """One event with all values: a tenth of the time of one event a value."""
        from tensorboard.compat.proto import summary_pb2

        proto: Any = summary_pb2  # its classes are made at run time
        values = [
            proto.Summary.Value(tag=tag, simple_value=value)
            for part in (metrics, more)
            for tag, value in part.items()
        ]
        self._write(step, summary=proto.Summary(value=values))

    def end(self, status: str, files: Mapping[str, Path], summary: Mapping[str, float]) -> None:
        """Nothing is left to do: what was logged is in the file."""

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        proto: Any = event_pb2
        event = proto.Event(wall_time=time.time(), step=step, **content)
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append(self._file, record.getvalue())


def _cell(text: str) -> str:
    """Text that neither ends a cell nor a row of a Markdown table, nor is read as HTML."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return line.replace("|", "&#124;")
