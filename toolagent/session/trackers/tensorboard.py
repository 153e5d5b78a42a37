"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolagent.session.trackers.base import RunDescription, Tracker

# A run that is killed leaves no gap before its last checkpoint, or a small one.
_FLUSH_S = 1


class TensorBoard(Tracker):
    """`DIR/tensorboard`: read by `tensorboard --logdir DIR`; a resumed run adds a file."""

    name = "tensorboard"
    background = False  # its writer has a thread of its own

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: Any = None

    def check(self, resumed: str | None) -> None:
        """Nothing to refuse: it is a dependency, and the folder is the run's own."""

    def start(self, run: RunDescription, resumed: str | None) -> str | None:
        """Opens a new event file."""
        from torch.utils.tensorboard import FileWriter

        self._writer = FileWriter(str(self.folder), flush_secs=_FLUSH_S)
        return None

    def go_back(self, step: int) -> None:
        """Readers of the folder drop what was written for later steps, in this file or another."""
        from tensorboard.compat.proto import event_pb2

        proto: Any = event_pb2
        # As `SummaryWriter(purge_step=...)` writes it: from this step on all is void.
        begun = proto.SessionLog(status=proto.SessionLog.START)
        self._writer.add_event(proto.Event(file_version="brain.Event:2"), step + 1)
        self._writer.add_event(proto.Event(session_log=begun), step + 1)

    def log(self, metrics: Mapping[str, float], more: Mapping[str, float], step: int) -> None:
        """One event with all values: a tenth of the time of one event a value."""
        from tensorboard.compat.proto import summary_pb2

        proto: Any = summary_pb2  # its classes are made at run time
        values = [
            proto.Summary.Value(tag=tag, simple_value=value)
            for part in (metrics, more)
            for tag, value in part.items()
        ]
        self._writer.add_summary(proto.Summary(value=values), step)

    def end(self, status: str, files: Mapping[str, Path], summary: Mapping[str, float]) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
