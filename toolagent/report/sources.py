"""What `report` can be given: a run, seeds of a configuration, or a search; and the groups that
its runs make."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolagent.checkpoints.run_files import (
    Row,
    SearchSummary,
    SearchTrial,
    SeedGroup,
    Summary,
    TrialResult,
    parsed,
    read_bytes,
    read_file,
)
from toolagent.checkpoints.run_folder import BASE, SEARCH, SEEDS, SUMMARY, holds_seeds
from toolagent.config import documents
from toolagent.config.folder import read_config
from toolagent.config.source import shown
from toolagent.errors import UserError
from toolagent.report.run_files import RunRecord, read_head, read_run

MOST_TRIALS = 12  # of a search that are drawn; the furthest ones
# Says nothing about learning, and a resumed run may have another one.
_OF_THE_RUN = "run"


@dataclass(frozen=True)
class Source:
    """What one path holds."""

    path: Path
    runs: list[RunRecord]
    together: bool = False  # the runs are seeds of one configuration
    notes: list[str] = field(default_factory=list)  # what is left out


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only: one line of a comparison."""

    name: str
    runs: list[RunRecord]


def read_source(path: Path) -> Source:
    """Reads whatever the path holds.

    Raises:
        UserError: nothing that could be shown.
    """
    if holds_seeds(path):
        return _seeds(path)
    if (path / SEARCH).is_file():
        return _search(path)
    return Source(path, [read_run(path)])


def _seeds(path: Path) -> Source:
    folders = read_file(path / SEEDS, SeedGroup).folders(path)
    runs, notes = [], []
    for seed, folder in folders.items():
        try:
            runs.append(read_run(folder))
        except UserError as error:  # not begun yet, perhaps
            notes.append(f"seed {seed} is left out: {error}")
    if not runs:
        raise UserError(f"{path}: none of its {len(folders)} seeds has trained yet")
    return Source(path, runs, together=True, notes=notes)


def groups_of(sources: list[Source]) -> list[Group]:
    """The groups, in the order in which they were given: each folder of seeds is one; runs given
    by themselves, and trials, are put together where nothing but their seeds differs."""
    found: list[list[RunRecord]] = []
    names: list[str] = []
    places: dict[tuple[Path | None, str], int] = {}
    for source in sources:
        if source.together:
            found.append(source.runs)
            names.append(source.path.resolve().name)
            continue
        # Trials of two searches are apart.
        place = source.path if len(source.runs) > 1 else None
        for run in source.runs:
            settings = {k: v for k, v in flat(run).items() if k.split(".")[0] != _OF_THE_RUN}
            key = (place, repr(sorted(settings.items())))
            if key in places:
                found[places[key]].append(run)
                continue
            places[key] = len(found)
            found.append([run])
            names.append("")
    names = [name or _common_name(runs) for name, runs in zip(names, found, strict=True)]
    counts = Counter(names)
    return [
        Group(name if counts[name] == 1 else _longer(name, runs[0], number), runs)
        for number, (name, runs) in enumerate(zip(names, found, strict=True), 1)
    ]


def _common_name(runs: list[RunRecord]) -> str:
    """What the names begin with: 'wide' of 'wide_0' and 'wide_1'."""
    if len(runs) == 1:
        return runs[0].name
    first, last = min(run.name for run in runs), max(run.name for run in runs)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    common = "".join(letter for letter, _ in alike).rstrip("0123456789").rstrip("-_,. ")
    return common or f"{runs[0].name} and {len(runs) - 1} more"


def _longer(name: str, run: RunRecord, number: int) -> str:
    """A name that another group has too, with the folder around it."""
    return f"{number}: {run.path.resolve().parent.name}/{name}"


def flat(run: RunRecord) -> dict[str, Any]:
    """The configuration by key, 'training.lr', without the seed; lists are values."""
    found: dict[str, Any] = {}

    def add(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                add(inner, f"{key}.{name}" if key else str(name))
        else:
            found[key] = value

    add(documents.parse(run.config, str(run.path)), "")
    found.pop("seed", None)
    return found


# Searches --------------------------------------------------------------------------------------


def _search(path: Path) -> Source:
    """The trials that have results, the furthest first."""
    base = documents.parse(read_config(path / BASE), str(path / BASE))
    runs, notes = [], []
    listed = _listed(path)
    for trial in listed:
        try:
            runs.append(_trial(path, trial, base))
        except UserError as error:
            notes.append(f"trial {trial.number} is left out: {error}")
    if not runs:
        raise UserError(f"{path}: none of its {len(listed)} trials has a result yet")
    runs.sort(key=_how_far, reverse=True)
    if len(runs) > MOST_TRIALS:
        notes.append(f"shows the {MOST_TRIALS} of {len(runs)} trials that got furthest")
    return Source(path, runs[:MOST_TRIALS], notes=notes)


def _listed(path: Path) -> list[SearchTrial]:
    """The trials of a search; of one that was killed, as its folders tell."""
    if (path / SUMMARY).exists():
        return read_file(path / SUMMARY, SearchSummary).trials
    folders = sorted(path.glob("trials/*/result.json"), key=lambda file: file.stat().st_ctime)
    found = []
    for number, file in enumerate(folders, 1):
        settings = documents.parse(read_config(file.with_name("params.json")), str(file.parent))
        folder = str(file.parent.relative_to(path))
        found.append(
            SearchTrial(number=number, status="unfinished", settings=settings, folder=folder)
        )
    return found


def _trial(path: Path, trial: SearchTrial, base: Any) -> RunRecord:
    folder = path / trial.folder
    file = folder / "result.json"
    results: list[TrialResult] = []
    for line in read_bytes(file).splitlines():
        result = parsed(line, TrialResult, str(file))
        # A trial that was resumed makes the iterations after its checkpoint again.
        while results and results[-1].training_iteration >= result.training_iteration:
            results.pop()
        results.append(result)
    if not results:
        raise UserError(f"{file}: holds no result")
    rows, before = [], (0, 0.0)
    for result in results:
        steps, seconds = result.env_steps - before[0], result.seconds - before[1]
        rows.append(
            Row(
                iteration=result.training_iteration,
                time_s=result.seconds,
                env_steps=result.env_steps,
                env_steps_per_s=max(0.0, steps / seconds) if seconds > 0 else 0.0,
                stage=result.stage,
                next_stage=result.stage,
                measured=True,
                accuracy={int(s): share for s, share in result.accuracies.items()},
            )
        )
        before = (result.env_steps, result.seconds)
    last = results[-1]
    values = trial.settings if trial.seed is None else {**trial.settings, "seed": trial.seed}
    config = documents.dump(_with_values(base, values))
    return RunRecord(
        folder,
        f"trial {trial.number}",
        **read_head(config, str(path / BASE)).model_dump(),
        config=config,
        rows=rows,
        summary=Summary(
            env_steps=last.env_steps,
            wall_time_s=last.seconds,
            env_steps_per_s=last.env_steps / last.seconds if last.seconds else 0.0,
            stopped_by="solved" if last.certified else trial.status.replace("_", " "),
            stages=[],
        ),
    )


def _with_values(base: Any, values: dict[str, Any]) -> Any:
    """The base with a trial's values put in place; 'a.b, c.d' stands for two keys."""
    document = documents.parse(documents.dump(base), "")
    for keys, value in values.items():
        for key in keys.split(","):
            *sections, name = key.strip().split(".")
            place = document
            for section in sections:
                place = place.setdefault(section, {})
                if not isinstance(place, dict):
                    raise UserError(f"{key.strip()}: is inside {shown(place)}, no section")
            place[name] = value
    return document


def _how_far(run: RunRecord) -> tuple[bool, float, int]:
    """Sorts trials: certified ones before others, the sooner the better."""
    accuracy = run.rows[-1].accuracy
    solved = run.summary is not None and run.summary.stopped_by == "solved"
    mean = sum(accuracy.values()) / len(accuracy) if accuracy else 0.0
    return solved, 0.0 if solved else mean, -run.rows[-1].env_steps
