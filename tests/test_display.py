"""What a person sees while a command works: a live line, the panel of a run, a log's lines."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from toolagent.cli.activity import Activity
from toolagent.cli.interrupt import Interrupt
from toolagent.config import load_settings
from toolagent.run.display import Display
from toolagent.run.results import fitted

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
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get())
    return plain.splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("faults", [0, 3])
def test_the_panel_fits_any_terminal_with_every_figure_named_and_whole(width, faults):
    screen = console(width)
    display = display_of(screen, "run.stop_time_s=172800")
    display.update(ROW | {"env_runner_restarts_lifetime": faults}, {"0"})
    lines = lines_of(screen, display._picture())
    assert {len(line) for line in lines} == {width}
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
def test_trajectories_are_not_broken_within_a_number(width):
    words = [f"MUL[{share}] acc={share} ->" for share in (0.99, 12345678, -17)] * 9
    lines = fitted(" ".join(words), console(width)).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == " ".join(words)
