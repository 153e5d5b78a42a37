"""What is seen under the microscope, for a terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table

from toolagent import cli
from toolagent.explain.microscope import Future, Look, percentages
from toolagent.explain.probes import ProbeReport
from toolagent.rollouts.trajectory import probability_text
from toolagent.vocabulary import Vocabulary


def probability_table(looks: list[Look], vocabulary: Vocabulary) -> Table:
    """A row a step, a column for each action, in per cent: 18 are 80 columns wide."""
    names = vocabulary.actions
    table = cli.table("step", *names, right=("step", *names))
    for look in looks:
        table.add_row(str(look.number), *percentages(look.step))
    return table


def futures_table(looks: list[Look], vocabulary: Vocabulary) -> Table:
    """A row a step: what the oracle would write here, and what the runner-up would have led to."""
    table = cli.table(
        "step",
        "token",
        "oracle",
        "to go",
        "runner-up",
        "then answers",
        "in",
        right=("step", "to go", "in"),
    )
    for look in looks:
        table.add_row(
            str(look.number),
            vocabulary.names[look.step.token],
            "-" if look.oracle is None else vocabulary.names[look.oracle[0]],
            "-" if look.oracle is None else str(len(look.oracle)),
            vocabulary.names[look.step.runner_up],
            future_text(look.instead),
            str(len(look.instead.tokens)),
        )
    return table


def future_text(future: Future) -> str:
    """'right', '12, wrong' or 'nothing'."""
    if future.answer is None:
        return "nothing"
    return f"{future.answer}, {'right' if future.solved else 'wrong'}"


def probe_table(report: ProbeReport) -> Table:
    """A row a probe; its columns are the network, and the controls."""
    right = ("examples", "agent", "untrained", "inputs", "shuffled")
    table = cli.table("probe", *right, right=right)
    for probe in report.probes:
        scores = (probe.agent, probe.untrained, probe.inputs, probe.shuffled)
        table.add_row(probe.name, f"{probe.examples:,}", *(f"{score:.2f}" for score in scores))
    return table


def page(
    heading: str,
    verdict: list[str],
    looks: list[Look],
    report: ProbeReport | None,
    checkpoint: str,
    vocabulary: Vocabulary,
) -> str:
    """A page in one file: no script, nothing loaded from anywhere."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        heading=heading,
        checkpoint=checkpoint,
        verdict=verdict,
        tokens=vocabulary.actions,
        steps=[_for_page(look, vocabulary) for look in looks],
        registers=list(looks[0].step.registers),
        report=report,
    )


def _for_page(look: Look, vocabulary: Vocabulary) -> dict[str, Any]:
    step = look.step
    return {
        "number": look.number,
        "token": vocabulary.names[step.token],
        "probability": probability_text(step.probability, 3),
        "cells": [
            {"share": 0 if share != share else round(share, 3), "text": text, "chosen": index}
            for share, text, index in zip(
                step.probabilities,
                percentages(step),
                [token == step.token for token in range(vocabulary.num_actions)],
                strict=True,
            )
        ],
        "value": f"{step.value:.2f}",
        "reward": f"{step.reward:.2f}",
        "registers": ["-" if value is None else value for value in step.registers.values()],
        "oracle": None if look.oracle is None else vocabulary.text(look.oracle),
        "agrees": look.agrees,
        "runner_up": vocabulary.names[step.runner_up],
        "runner_up_probability": probability_text(step.runner_up_probability, 3),
        "instead": vocabulary.text(look.instead.tokens),
        "instead_text": future_text(look.instead),
        "instead_solved": look.instead.solved,
    }
