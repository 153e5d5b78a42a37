"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolagent.session.trackers.base import RunDescription, Tracker


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

        self._writer = FileWriter(str(self.folder))
        return None

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
