"""What follows from a run's files: the tables of the report, as text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from toolagent.checkpoints.run_files import STOPPED_BY, Counts
from toolagent.cli import words
from toolagent.report.run_files import RunRecord
from toolagent.tasks import TASKS, get_task
from toolagent.tasks.oracle import shortest_programs

MAX_CHANGES = 25  # of the most frequent program, shown for each stage


@dataclass(frozen=True)
class Table:
    """Headings and rows of cells; those under `numbers` are flush right."""

    caption: str
    headings: list[str]
    rows: list[list[str]]
    numbers: Collection[int] = ()  # columns
    note: str = ""


def headline(run: RunRecord) -> str:
    """What the run came to, in one sentence."""
    last = run.rows[-1]
    if run.summary is None:
        return f"{last.env_steps:,} env steps in {last.time_s:.1f} s so far; it has not ended."
    stopped = STOPPED_BY.get(run.summary.stopped_by, run.summary.stopped_by)
    return (
        f"{run.summary.env_steps:,} env steps in {run.summary.wall_time_s:.1f} s "
        f"({run.summary.env_steps_per_s:,.0f} steps/s). Stopped: {stopped}."
    )


def formula(run: RunRecord, stage: int) -> str:
    """What the stage asks for; '' if nobody says. The module of a task from outside is not
    imported: what its stages ask for is in the run's own files."""
    if run.task in TASKS and stage in get_task(run.task).stages:
        return get_task(run.task).formula(stage)
    written = run.behaviour.stages if run.behaviour else []
    return next((entry.formula for entry in written if entry.stage == stage), "")


def stages_of(runs: Iterable[RunRecord]) -> list[int]:
    """Every stage that was measured in any of the runs."""
    return sorted({stage for run in runs for row in run.measured for stage in row.accuracy})


def accuracies(run: RunRecord) -> Table:
    """Every stage at the end: certified where all problems were played."""
    if run.summary is None or not run.summary.stages:
        rows = [
            [str(stage), formula(run, stage), percent(share)]
            for stage, share in (run.measured[-1].accuracy if run.measured else {}).items()
        ]
        title = "Accuracy at the last measurement, on a sample of fresh problems"
        return Table(title, ["stage", "problem", "accuracy"], rows, {0, 2})
    rows, judged = [], any(s.algebraically_valid is not None for s in run.summary.stages)
    for stage in run.summary.stages:
        first = stage.first_solved_env_steps
        splits: list[tuple[Counts, str, str]] = [
            (stage, formula(run, stage.stage), "-" if first is None else f"{first:,}"),
            *((counts, words(name), "-") for name, counts in stage.other_splits.items()),
        ]
        for counts, what, solved_at in splits:
            cells = [str(stage.stage), what, f"{counts.solved:,}/{counts.problems:,}"]
            cells += [_solved(counts), "every problem" if stage.complete else "a fixed sample"]
            cells += [percent(counts.algebraically_valid)] * judged
            rows.append([*cells, solved_at])
    headings = ["stage", "problem", "solved", "accuracy", "counted on"]
    headings += ["algebraically valid"] * judged + ["first solved at env step"]
    return Table("Greedy accuracy at the end", headings, rows, {0, 2, 3, *range(5, len(headings))})


def optimality(run: RunRecord) -> Table | None:
    """How long the right programs are, beside the shortest plan; None if that is not known."""
    if run.behaviour is None or run.summary is None or run.task not in TASKS:
        return None
    task, problems = get_task(run.task), {s.stage: s for s in run.summary.stages}
    rows = []
    for stage in run.behaviour.stages:
        counts = problems.get(stage.stage)
        if counts is None or stage.stage not in task.stages:
            continue
        solved = sum(stage.solved_in)
        actions = sum(n * count for n, count in enumerate(stage.solved_in))
        plan, length, best = "a plan of its own for every problem", "-", "-"
        if task.one_plan_a_stage:
            plans = _shortest(run.task, stage.stage)
            plan, length = ("none exists", "-")
            if plans:
                plan, length = task.vocabulary.text(plans[0]), str(len(plans[0]))
            if plans and len(plans[0]) < len(stage.solved_in):
                best = percent(stage.solved_in[len(plans[0])] / counts.problems)
        else:
            best = percent(counts.shortest)
        text = f"{actions / solved:.2f}" if solved else "-"
        rows.append([str(stage.stage), plan, length, text, best])
    return Table(
        "Length of the right programs against the shortest plan, from an exhaustive search",
        ["stage", "shortest plan", "its length", "agent's mean", "solved at it"],
        rows,
        {0, 2, 3, 4},
    )


def know_shortest_programs(task: str) -> None:
    """Searches now for what `optimality` tells of; it is known from then on."""
    if task in TASKS and get_task(task).one_plan_a_stage:
        for stage in get_task(task).stages:
            _shortest(task, stage)


@cache
def _shortest(task: str, stage: int) -> tuple[tuple[int, ...], ...]:
    return tuple(shortest_programs(get_task(task), stage))


def tools_first_used(run: RunRecord) -> Table | None:
    """At which env step the greedy agent first used each tool, and how much it does at the end."""
    measured = [row for row in run.rows if row.programs]
    if not measured:
        return None
    stages = sorted({stage for row in measured for stage in row.programs})
    rows = []
    for tool in tools_of(run):
        cells = [tool]
        for stage in stages:
            seen = [row for row in measured if stage in row.programs]
            first = next((r for r in seen if r.programs[stage].tools.get(tool, 0) > 0), None)
            end = seen[-1].programs[stage].tools.get(tool, 0.0)
            cells.append("never" if first is None else f"{first.env_steps:,} ({percent(end)})")
        rows.append(cells)
    return Table(
        "Env step at which a greedy program first used the tool (share of programs with it at "
        "the end)",
        ["tool", *(f"stage {stage}" for stage in stages)],
        rows,
        range(1, len(stages) + 1),
        "As of the measurements; explorers, which try every tool from the start, are not counted.",
    )


def tools_of(run: RunRecord) -> list[str]:
    """The tools of the run's task; of a task from outside, those that greedy programs used."""
    if run.task in TASKS:
        task = get_task(run.task)
        return list(task.tools or task.vocabulary.actions)
    return sorted(
        {t for row in run.rows for program in row.programs.values() for t in program.tools}
    )


def programs_over_time(run: RunRecord) -> list[Table]:
    """For each stage: whenever another greedy program became the most frequent one."""
    tables = []
    for stage in sorted({stage for row in run.rows for stage in row.programs}):
        changes: list[list[str]] = []
        for row in run.rows:
            found = row.programs.get(stage)
            if found is None or (changes and found.program == changes[-1][1]):
                continue
            accuracy = percent(row.accuracy.get(stage))
            changes.append([f"{row.env_steps:,}", found.program, percent(found.share), accuracy])
        what = formula(run, stage)
        title = f"Stage {stage}{f', {what}' if what else ''}: the most frequent greedy program"
        headings = ["from env step", "program", "its share", "accuracy then"]
        tables.append(_latest(title, headings, changes, {0, 2, 3}, "changes"))
    return tables


def events(run: RunRecord) -> Table | None:
    """What the curriculum did."""
    rows = [
        [f"{row.env_steps:,}", f"{row.time_s:.1f}", row.curriculum_event]
        for row in run.rows
        if row.curriculum_event
    ]
    headings = ["env step", "seconds", "what happened"]
    return _latest("Curriculum", headings, rows, {0, 1}, "events") if rows else None


def environment(run: RunRecord) -> list[Table]:
    """One table a session."""
    tables = []
    for number, session in enumerate(run.environment.sessions if run.environment else [], 1):
        rows = [
            ["started", session.started],
            ["command line", " ".join(session.command)],
            ["git commit", session.commit or "not known"],
            ["Python", session.python],
            *[[name, version] for name, version in session.packages.items()],
            ["platform", session.platform],
            ["processor", f"{session.processor}, {session.cores} cores for this process"],
            ["memory", f"{session.memory_gib:g} GiB"],
            ["GPUs", ", ".join(session.gpus) or "none"],
            ["Ray cluster", ", ".join(f"{value:g} {k}" for k, value in session.cluster.items())],
        ]
        which = f"session {number}" if len(run.environment.sessions) > 1 else "the session"
        tables.append(Table(f"Environment of {which}", ["what", "value"], rows))
    return tables


def _latest(
    title: str, headings: list[str], rows: Sequence[list[str]], numbers: set[int], noun: str
) -> Table:
    """The table of the last `MAX_CHANGES` rows, and a note where there are more."""
    note = f"The last {MAX_CHANGES} of {len(rows):,} {noun}." if len(rows) > MAX_CHANGES else ""
    return Table(title, headings, list(rows[-MAX_CHANGES:]), numbers, note)


def _solved(counts: Counts) -> str:
    return percent(counts.solved / counts.problems)


def percent(share: float | None) -> str:
    """A share as every table has it: two decimals, rounded down, so that '100%' means all; '0%'
    means none. '-' for None."""
    if share is None:
        return "-"
    if share in (0, 1):
        return f"{100 * share:.0f}%"
    hundredths = math.floor(round(10_000 * share, 6))
    return f"{hundredths / 100:.2f}%" if hundredths else "<0.01%"
