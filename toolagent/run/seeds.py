"""Several seeds of one configuration: `python -m toolagent.run --seeds 0-4`.

Each seed is the command itself, started once more with `--seed`, in its own folder. What is here
starts as many of them as there are cores for, shows where they stand, and puts their results
together.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from toolagent import cli
from toolagent.checkpoints.run_files import SeedGroup, read_file, written
from toolagent.checkpoints.run_folder import (
    BASE,
    PROGRESS,
    REPORT,
    SEEDS,
    SUMMARY,
    RunFolder,
    holds_seeds,
    new_folder,
)
from toolagent.checkpoints.storage import is_uri
from toolagent.cli.activity import SPARE_COLUMNS, Activity, time_text
from toolagent.cli.interrupt import Interrupt
from toolagent.config.settings import MAX_SEED
from toolagent.errors import UserError, labelled, quoted
from toolagent.files import folder_fault, write_atomically
from toolagent.report import comparison
from toolagent.report.page import write_comparison
from toolagent.report.sources import Group, Source, read_source
from toolagent.run.launch import Request, checked, given_with_resume

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from toolagent.config import Settings

MOST_SEEDS = 1000
_LOOK_S = 0.2  # between two looks at the processes
_LOG_PERIOD_S = 30.0  # where there is no terminal
_TAIL = 1 << 17  # bytes at the end of `progress.jsonl` in which the last line is


def seeds_of(text: str) -> list[int]:
    """The seeds that `--seeds` names: '0-4', '0,3,7', '0-2,7'.

    Raises:
        UserError: it names none, one twice, or one that can't be.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,20})(?:\s*-\s*(\d{1,20}))?\s*", part)
        if found is None:
            raise UserError(f"--seeds {text}: expected seeds such as 0-4 or 0,3,7")
        first = int(found[1])
        last = int(found[2]) if found[2] else first
        if last < first:
            raise UserError(f"--seeds {text}: {part.strip()} is empty; write {last}-{first}")
        if last > MAX_SEED:
            raise UserError(f"--seeds {text}: a seed is at most {MAX_SEED}")
        if last - first >= MOST_SEEDS:
            raise UserError(f"--seeds {text}: more than {MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise UserError(f"--seeds {text}: names {seed} twice")
    return seeds


@dataclass
class _Run:
    """One seed's process."""

    seed: int
    folder: Path
    log: Path
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None  # exit code, once it has ended
    since: float = 0.0  # when it was started, by `time.monotonic()`
    seconds: float = 0.0  # that it took so far, start-up and results too

    def start(self) -> None:
        """Starts it in a group of its own: Ctrl-C comes to it from this process only, once."""
        self.since = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def look(self) -> bool:
        """Whether it has ended since the last look."""
        if self.process is None or self.code is not None:
            return False
        self.seconds = time.monotonic() - self.since
        self.code = self.process.poll()
        return self.code is not None

    def signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self.process is not None and self.code is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.process is None:
            return "waiting"
        words = {None: "running", 0: "ended", cli.EXIT_INTERRUPTED: "interrupted"}
        return words.get(self.code, "FAILED")

    @property
    def fault(self) -> str:
        """Why it failed: the last error of its log, or its last line."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return cli.one_line((errors or lines or ["it said nothing"])[-1].removeprefix("error: "))


def run_seeds(request: Request, seeds: list[int], console: Console) -> int:
    """Runs the request once for each seed.

    Returns:
        0 if every seed has trained; 130 after Ctrl-C; 2 if the request was refused; else 1.

    Raises:
        UserError: the request can't be met; nothing is written then.
    """
    if request.output_dir is not None and is_uri(request.output_dir):
        raise UserError(f"--output-dir {request.output_dir}: --seeds needs a folder")
    if request.output_dir == "":
        raise UserError("--output-dir: is empty; name a folder, or leave it out")
    settings, algorithm_config = _checked(request, console)
    from toolagent.config import to_yaml
    from toolagent.run.start import policy_of
    from toolagent.tasks import get_task

    origin = request.init_from
    if origin is not None:
        policy_of("--init-from", origin, settings, algorithm_config)
        origin = origin if is_uri(origin) else os.path.abspath(origin)
    given = None if request.output_dir is None else Path(request.output_dir)
    advice = None
    if given is not None and holds_seeds(given):
        advice = f"continue with --resume {quoted(given)}"
    path = new_folder(given, f"{get_task(settings.task).name}-seeds", advice)
    group = SeedGroup(seeds=seeds, init_from=origin)
    locked = RunFolder(path)
    with labelled(f"--output-dir {path}: can't be written: ", OSError):
        path.mkdir(parents=True, exist_ok=True)
        locked.lock("--output-dir")
        write_atomically(path / BASE, to_yaml(settings).encode())
        write_atomically(path / SEEDS, written(group.model_dump(), SeedGroup))
    runs = [_new(path, group, seed, request.address) for seed in seeds]
    return _carry_out(path, runs, _at_once(settings, algorithm_config, request.address), console)


def resume_seeds(request: Request, console: Console) -> int:
    """Continues the runs of a folder of seeds that have not ended; as `run_seeds`.

    With a limit raised, those go on too that a limit ended.

    Raises:
        UserError: nothing is left to do, or the folder can't be used.
    """
    given_with_resume(request)
    path = Path(str(request.resume))
    if fault := folder_fault(path):
        raise UserError(f"--resume {path}: {fault}")
    group = read_file(path / SEEDS, SeedGroup)
    base = Request(config=str(path / BASE), address=request.address, overrides=request.overrides)
    settings, algorithm_config = _checked(base, console)
    locked = RunFolder(path)
    locked.lock("--resume")
    runs = []
    for seed, folder in group.folders(path).items():
        run = _new(path, group, seed, request.address)
        sets = [part for text in request.overrides for part in ("--set", text)]
        if RunFolder(folder).config.is_file():
            if _nothing_left(folder, request.overrides):
                continue
            run.command = _command("--resume", os.fspath(folder), *sets, address=request.address)
        else:
            run.command += sets
        runs.append(run)
    if not runs:
        raise UserError(
            f"--resume {path}: nothing is left to do: all {len(group.seeds)} seeds have ended; "
            "raise a limit, as with --stop-env-steps"
        )
    done = len(group.seeds) - len(runs)
    if done:
        console.print(f"{done} of {len(group.seeds)} seeds have ended before")
    return _carry_out(path, runs, _at_once(settings, algorithm_config, request.address), console)


def _checked(request: Request, console: Console) -> tuple[Settings, AlgorithmConfig]:
    """`launch.checked`; says meanwhile what is loaded for it."""
    with Activity(console) as activity:
        activity.loading("torch", "ray.rllib")
        settings, algorithm_config, _ = checked(request)
    return settings, algorithm_config


def _nothing_left(folder: Path, overrides: tuple[str, ...]) -> bool:
    """Whether a run has ended, and will not go on with these overrides."""
    from toolagent.checkpoints.training_state import newest_checkpoint
    from toolagent.config import load_settings
    from toolagent.run.start import nothing_left

    run = RunFolder(folder)
    try:
        _, state = newest_checkpoint(run.checkpoints)
    except UserError:  # none yet; or torn ones, of which the run itself tells
        return False
    return nothing_left(load_settings(run.config, overrides), state) is not None


def _new(path: Path, group: SeedGroup, seed: int, address: str | None) -> _Run:
    folder = group.folders(path)[seed]
    arguments = ["--config", os.fspath(path / BASE), "--seed", str(seed)]
    arguments += ["--output-dir", os.fspath(folder)]
    if group.init_from is not None:
        arguments += ["--init-from", group.init_from]
    log = folder.with_name(f"{folder.name}.log")
    return _Run(seed, folder, log, _command(*arguments, address=address))


def _command(*arguments: str, address: str | None) -> list[str]:
    """The command line of one run."""
    joined = [] if address is None else ["--address", address]
    return [sys.executable, "-m", "toolagent.run", *arguments, *joined]


def _at_once(settings: Settings, algorithm_config: AlgorithmConfig, address: str | None) -> int:
    """How many runs the cores are enough for. One on a cluster that is joined, with GPUs, and
    where a run takes all cores that it finds."""
    from toolagent.cluster.ray_session import usable_cpus

    assert algorithm_config.algo_class is not None
    needed: Any = algorithm_config.algo_class.default_resource_request(algorithm_config.to_dict())
    resources = needed.required_resources
    if address is not None or settings.auto_runners or resources.get("GPU"):
        return 1
    return max(1, int(usable_cpus() // max(1.0, resources.get("CPU", 1.0))))


def _carry_out(path: Path, runs: list[_Run], at_once: int, console: Console) -> int:
    noun = "at once" if at_once > 1 else "at a time"
    console.print(f"{len(runs)} runs, {min(at_once, len(runs))} {noun}", soft_wrap=True)
    console.print(f"results in {cli.one_line(path)}", soft_wrap=True)
    resume = f"continue with python -m toolagent.run --resume {quoted(path)}"
    try:
        interrupted = _play_out(runs, at_once, console)
    except KeyboardInterrupt:  # the second one
        console.print(f"stopped; {resume}", soft_wrap=True)
        raise
    for run in runs:
        if run.state == "FAILED":
            log = cli.one_line(run.log)
            print(f"error: seed {run.seed}: {run.fault} (see {log})", file=sys.stderr)
    with contextlib.suppress(UserError):  # no seed has trained: why was said above
        _publish(path, read_source(path), console)
    if interrupted:
        console.print(f"interrupted; {resume}", soft_wrap=True)
        return cli.EXIT_INTERRUPTED
    codes = {run.code for run in runs if run.process is not None}
    if codes == {0}:
        return 0
    return cli.EXIT_USER_ERROR if codes == {cli.EXIT_USER_ERROR} else 1


def _play_out(runs: list[_Run], at_once: int, console: Console) -> bool:
    """Starts the runs and waits for all of them; whether they were interrupted."""
    start = shown = time.monotonic()
    with Interrupt() as interrupt, Activity(console, interrupt) as activity:
        activity.stopping = "each writes a checkpoint and stops; Ctrl-C again: stops at once"
        told = False
        try:
            while True:
                for run in runs:
                    if run.look() and not console.is_terminal:
                        elapsed = time.monotonic() - start
                        console.print(f"{elapsed:6.1f} s  seed {run.seed}: {run.state}")
                if interrupt.requested and not told:
                    told = True
                    if not console.is_terminal:
                        console.print("stopping all runs; each writes a checkpoint")
                    for run in runs:
                        run.signal(signal.SIGINT)
                # What one seed is refused for, all are.
                refused = any(run.code == cli.EXIT_USER_ERROR for run in runs)
                running = [run for run in runs if run.process is not None and run.code is None]
                waiting = [run for run in runs if run.process is None]
                if not (told or refused):
                    for run in waiting[: at_once - len(running)]:
                        run.start()
                        running.append(run)
                if not running:
                    return told
                if console.is_terminal:
                    activity.show(*cli.fitted_table(console, _table(runs), SPARE_COLUMNS))
                    ended = sum(run.code is not None for run in runs)
                    activity.doing(f"{ended} of {len(runs)} seeds have ended", since=start)
                elif time.monotonic() - shown > _LOG_PERIOD_S:
                    shown = time.monotonic()
                    for run in running:
                        console.print(f"{shown - start:6.1f} s  {_line(run)}")
                time.sleep(_LOOK_S)
        except BaseException:  # a second Ctrl-C, or a bug: nothing may be left behind
            for run in runs:
                run.signal(signal.SIGINT if told else signal.SIGTERM)
            for run in runs:
                if run.process is not None:
                    run.process.wait()
            raise


def _line(run: _Run) -> str:
    """Where a seed stands, for a log."""
    _, state, _, env_steps, rate, stage, accuracy = _cells(run)
    return (
        f"seed {run.seed}: {state}, {env_steps} env steps, {rate} steps/s, stage {stage}, "
        f"accuracy {accuracy}"
    )


def _table(runs: list[_Run]) -> Table:
    """Where each seed stands, by the last row of its progress."""
    right = ["seed", "time", "env steps", "steps/s", "stage"]
    table = cli.table("seed", "state", *right[1:], "accuracy by stage", right=right)
    for run in runs:
        table.add_row(*_cells(run))
    return table


def _cells(run: _Run) -> list[str]:
    taken = time_text(run.seconds) if run.process is not None else "-"
    row = _last_row(run.folder / PROGRESS)
    if row is None:
        state = "starting" if run.state == "running" else run.state
        return [str(run.seed), state, taken, *["-"] * 4]
    accuracy = " ".join(f"{int(100 * share)}%" for share in row["accuracy"].values())
    return [
        str(run.seed),
        run.state,
        taken,
        f"{row['env_steps']:,}",
        f"{row['env_steps_per_s']:,.0f}",
        str(row["stage"]),
        accuracy or "-",
    ]


def _last_row(file: Path) -> dict[str, Any] | None:
    """The last whole line of `progress.jsonl`; None if there is none."""
    try:
        with file.open("rb") as lines:
            return _last_document(lines)
    except OSError:
        return None


def _last_document(lines: IO[bytes]) -> dict[str, Any] | None:
    lines.seek(max(0, lines.seek(0, os.SEEK_END) - _TAIL))
    for line in reversed(lines.read().split(b"\n")[:-1]):
        with contextlib.suppress(ValueError):
            return json.loads(line)
    return None


def _publish(path: Path, source: Source, console: Console) -> None:
    """Prints the results of the seeds that have some, and writes them down."""
    ended = [run for run in source.runs if run.summary is not None]
    for note in source.notes:
        cli.say(console, note)
    group = Group(path.resolve().name, source.runs)
    if ended:
        results = Group(group.name, ended)
        counted = f", {len(ended)} of {_counted(path)} seeds"
        for table in (
            comparison.overview([results]),
            comparison.accuracy_table([results]),
            comparison.solving_table([results]),
        ):
            cli.say(console, f"\n{table.caption}{counted}")
            shown = cli.table(*table.headings, right=[table.headings[n] for n in table.numbers])
            for row in table.rows:
                shown.add_row(*row)
            cli.print_table(console, shown)
        cli.say(console, f"\n{comparison.METHOD}")
        document = {
            "seeds": {
                str(run.seed): {
                    "folder": run.path.name,
                    "stopped_by": run.summary.stopped_by,
                    "env_steps": run.summary.env_steps,
                    "wall_time_s": run.summary.wall_time_s,
                }
                for run in ended
                if run.summary is not None
            },
            **comparison.records([results]),
        }
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        write_atomically(path / SUMMARY, text.encode())
    page = path / REPORT
    try:
        write_comparison([group], page)
        console.print(f"\nreport: {quoted(page)}", soft_wrap=True)
    except (OSError, UserError) as error:
        print(f"warning: no {page.name}: {error}", file=sys.stderr)


def _counted(path: Path) -> int:
    return len(read_file(path / SEEDS, SeedGroup).seeds)
