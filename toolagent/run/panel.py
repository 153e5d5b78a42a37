"""The panel that a terminal shows during training, at any width."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from toolagent.cli.activity import time_text

_SIDE_BY_SIDE, _WITH_BARS = 76, 104  # columns from which on there is room for that
_FRAME = 4  # columns, and the rows of frame and headings
_LONGEST_STAGE = 16  # characters of its number and problem


@dataclass
class TrainingPanel:
    """Where training stands, as `rich` prints it."""

    title: str
    row: Mapping[str, Any]  # of `progress.jsonl`
    problems: Mapping[int, str]  # stage -> what its problems look like
    solved: Collection[str]  # the stages that were solved
    left: str  # time at most; '' without a limit
    memory_bytes: int
    notes: Sequence[tuple[str, str]] = field(default=())  # (text, style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        stages = self._stages(width >= _WITH_BARS, console.height - _FRAME - len(self.notes))
        layout = Table.grid(padding=(0, 3), expand=True)
        if width >= _SIDE_BY_SIDE:
            layout.add_row(stages, _pairs(self._progress()), _pairs(self._learning()))
        else:
            layout.add_row(stages)
            figures = Table.grid(padding=(0, 3), expand=True)
            figures.add_row(_pairs(self._progress()), _pairs(self._learning()))
            layout.add_row(figures)
        content = Table.grid(expand=True)
        content.add_row(layout)
        for text, style in self.notes:
            content.add_row(Text(text, style=style))
        yield Panel(content, title=self.title, title_align="left", border_style="cyan", width=width)

    def _stages(self, bars: bool, most: int) -> Table:
        """Accuracy by stage; where the terminal is not high enough, of the last ones."""
        table = Table.grid(padding=(0, 1))
        header = ["stage", *[""] * bars, "accuracy"]
        for name in header:
            table.add_column(justify="right" if name == "accuracy" else "left", no_wrap=True)
        table.add_row(*header, style="dim")
        accuracies = self.row["accuracy"] or {str(self.row["stage"]): None}
        for stage, accuracy in list(accuracies.items())[-max(most, 1) :]:
            name = Text(f"{stage} {self.problems.get(int(stage), '')}")
            name.truncate(_LONGEST_STAGE, overflow="ellipsis")
            bar = ProgressBar(total=1.0, completed=accuracy or 0.0, width=20)
            style = "green" if stage in self.solved else ""
            if int(stage) == self.row["stage"]:
                style = f"bold {style}"
            share = "-" if accuracy is None else percent_text(accuracy)
            table.add_row(name, *[bar] * bars, share, style=style)
        return table

    def _progress(self) -> list[tuple[str, str]]:
        row = self.row
        return [
            ("time", time_text(row["time_s"])),
            *([("limit in", self.left)] if self.left else []),
            ("env steps", f"{row['env_steps']:,}"),
            ("steps/s", f"{row['env_steps_per_s']:,.0f}"),
            ("return", number_text(row.get("episode_return_mean"))),
            ("length", number_text(row.get("episode_len_mean"))),
            ("memory", f"{self.memory_bytes / 2**30:.1f} GiB"),
        ]

    def _learning(self) -> list[tuple[str, str]]:
        row = self.row
        named = [
            ("entropy", "entropy"),
            ("policy loss", "policy_loss"),
            ("value loss", "vf_loss"),
            ("imitation", "imitation_loss"),
        ]
        pairs = [(label, number_text(row[key])) for label, key in named if row.get(key) is not None]
        idle = (("learner busy", "learner_idle_share"), ("runners busy", "sampler_idle_share"))
        for label, key in idle:
            if row.get(key) is not None:
                pairs.append((label, f"{1 - row[key]:.0%}"))
        return pairs


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for label, value in pairs:
        table.add_row(label, value)
    return table


def percent_text(share: float) -> str:
    """The share with a decimal, rounded down: '100%' means all."""
    tenths = int(1000 * share)
    return "100%" if tenths == 1000 else f"{tenths / 10:.1f}%"


def number_text(value: float | None) -> str:
    """Three significant digits; '-' for none."""
    return "-" if value is None else f"{value:.3g}"
