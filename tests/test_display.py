"""What a person sees while a command works: a live line, the panel of a run, a log's lines."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from toolagent import cli
from toolagent.cli.activity import Activity
from toolagent.cli.interrupt import Interrupt
from toolagent.config import load_settings
from toolagent.run.display import Display

ROW = {
    "time_s": 86_399.0,
    "env_steps": 123_456_789,
    "env_steps_per_s": 1_234_567.0,
    "stage": 2,
    "accuracy": {"0": 1.0, "1": 0.99999, "2": 0.5},
    "episode_return_mean": -1.2345678,
    "episode_len_mean": 107.25,
    "entropy": 2.3456e-05,
    "policy_loss": -0.0012345,
    "vf_loss": 12345.678,
    "imitation_loss": 0.25,
    "learner_idle_share": 0.0,
    "sampler_idle_share": 0.5,
}
FIGURES = (
    *("100%", "99.9%", "50.0%", "23:59:59", "123,456,789", "1,234,567"),
    *("-1.23", "107", "2.35e-05", "-0.00123", "1.23e+04", "0.25"),
)


def console(width, height=40, terminal=True):
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        height=height,
        markup=False,
        highlight=False,
    )


def display_of(screen, *overrides, interrupt=None):
    display = Display(screen, interrupt)
    display.begin(load_settings("default", overrides))
    return display


def lines_of(screen, picture):
    with screen.capture() as capture:
        screen.print(picture)
    return plain(capture.get())


def plain(text):
    """Its lines, without colours and the like."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("faults", [0, 3])
def test_the_panel_fits_any_terminal_with_every_figure_named_and_whole(width, faults):
    screen = console(width)
    display = display_of(screen, "run.stop_time_s=172800")
    display.update(ROW | {"env_runner_restarts_lifetime": faults}, {"0"})
    lines = lines_of(screen, display._picture())
    assert {len(line) for line in lines} == {width - len("^C")}  # which is echoed behind it
    text = "\n".join(lines)
    assert all(re.search(rf"(^|\s){re.escape(figure)}\s", text) for figure in FIGURES)
    labels = ("a*b+c-d*e", "return", "entropy", "value loss", "learner busy", "runners busy")
    assert all(label in text for label in (*labels, "limit in", "memory"))
    assert ("faults: 3 env runner processes replaced" in text) == bool(faults)


def test_a_low_terminal_shows_the_last_stages():
    screen = console(80, height=10)
    display = display_of(screen)
    display.update(ROW | {"accuracy": {str(stage): stage / 100 for stage in range(30)}})
    lines = lines_of(screen, display._picture())
    assert len(lines) <= 10
    assert any("29.0%" in line for line in lines) and not any(" 1.0%" in line for line in lines)


def test_a_signal_is_acknowledged_before_anything_acts_on_it():
    interrupt, screen = Interrupt(), console(120)
    display = display_of(screen, interrupt=interrupt)
    activity = Activity(screen, interrupt)
    activity.doing("starting Ray")
    display.update(ROW)
    for shown in (display, activity):
        assert "stops" not in " ".join(lines_of(screen, shown._picture()))
    interrupt.requested = True
    for shown in (display, activity):
        assert "Ctrl-C again: stops at once" in " ".join(lines_of(screen, shown._picture()))


def test_a_log_has_a_line_for_what_takes_long_and_none_for_the_rest():
    screen = console(60, terminal=False)
    with display_of(screen) as display:
        display.loading("a_module_that_is_not_loaded")
        display.step("certifying")
        display.doing("starting Ray")
        display.update(ROW)
        display.update(ROW)
    first, second = screen.file.getvalue().splitlines()
    assert first == "certifying"
    assert "accuracy 0: 100%, 1: 99.9%, 2: 50.0%" in second and "return -1.23" in second


@pytest.mark.parametrize("width", [60, 80, 120])
def test_sentences_are_not_broken_within_a_word_or_number(width):
    words = [f"MUL[{share}] acc={share} ->" for share in (0.99, 12345678, -17)] * 9
    screen = console(width)
    cli.say(screen, "  " + " ".join(words))
    lines = plain(screen.file.getvalue())
    assert max(map(len, lines)) <= width
    assert [line.startswith("    ") for line in lines] == [False] + [True] * (len(lines) - 1)
    assert " ".join(line.strip() for line in lines) == " ".join(words)


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_a_table_fits_a_terminal_with_every_cell_and_heading_whole(width):
    names = ["stage", "problem", "certified", "accuracy", "mean reward", "first at env step"]
    rows = [[f"{n}", "a*b+c-d*e", "100,000/100,000", "99.999%", "1.14", "420,260"] for n in "012"]
    table = cli.table(*names, right=names[2:])
    for row in rows:
        table.add_row(*row)
    screen = console(width)
    cli.print_table(screen, table)
    lines = plain(screen.file.getvalue())
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for text in [*names, *(cell for row in rows for cell in row)]:
        assert set(text.split()) <= set(words)
    parts = [line for line in lines if line.startswith("─")]
    assert len(parts) == {24: 4, 40: 2, 60: 1, 80: 1}[width]
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == ["0", "1", "2"] * len(parts)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_is_live_leaves_room_for_the_echo_of_ctrl_c(width):
    display = display_of(console(width))
    for picture in ("a step that takes long " * 9, None):
        if picture:
            display.doing(picture)
        else:
            display.update(ROW)
        lines = lines_of(display.console, display._constrained_picture())
        assert max(len(line.rstrip()) for line in lines) <= width - len("^C")
