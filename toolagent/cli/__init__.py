"""What every command shares: how it ends when something is wrong, and how it shows accuracies.

| what happened                                  | stderr                   | exit code |
|------------------------------------------------|--------------------------|-----------|
| the command ran                                | nothing                  | its own, or 0 |
| the user got something wrong                   | one line, `error: ...`   | 2         |
| Ctrl-C, SIGTERM, SIGHUP                        | an empty line at most    | 130       |
| a bug                                          | the traceback            | 1         |
| the reader of standard output is gone (`head`) | nothing                  | as ever   |
| standard output can't be written otherwise     | one line, `warning: ...` | as ever   |
| ... and it would have been the only result     | one line more, `error:`  | 2         |
| stderr can't be written                        |                          | as ever   |

SIGHUP that was ignored when the command began, as under `nohup`, stays ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from toolagent.cli.interrupt import interruptible
from toolagent.cli.streams import keep_streams_alive, output_fault
from toolagent.errors import UserError, check_text, nearest
from toolagent.outside import is_outside
from toolagent.tasks.base import ALL

if TYPE_CHECKING:  # `rollouts` imports torch, which not every command needs
    from toolagent.rollouts.certification import StageAccuracy
    from toolagent.tasks import Task

# Python's last collection would go through all that RLlib and torch have imported: a second.
atexit.register(gc.freeze)

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# What a path on the command line can run into; any other OSError is a bug until shown otherwise.
FILE_FAULTS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


class PathType(click.ParamType):
    """A file or a folder; '~' begins it where the shell leaves that in place, as in
    `--output-dir=~/runs`. A URI stays as it is."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """The text with the home folder written out."""
        return os.path.expanduser(value)


PATH = PathType()


def code_flags(task: str, network: str) -> str:
    """What `code_options` need on the command line for a checkpoint of these, names or references:
    ' --task my_module:MyTask'; '' for toolagent's own."""
    given = {"task": task, "network": network}
    return "".join(f" --{name} {value}" for name, value in given.items() if is_outside(value))


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--task` and `--network` to a command that loads a checkpoint; they come as the
    arguments `task` and `network` (each a text or None), which `load_policy` takes."""
    for name in ("network", "task"):
        command = click.option(
            f"--{name}",
            metavar="MODULE:CLASS",
            help=f"The {name} of the checkpoint, where it is not one of toolagent's own: its code "
            "is run.",
        )(command)
    return command


class IntRange(click.IntRange):
    """click's, by a name that a message can say."""

    name = "integer"


class FloatRange(click.FloatRange):
    """click's, by a name that a message can say."""

    name = "number"


def examples(*lines: str) -> str:
    """The end of a command's help: command lines that work as they stand, each on its own line."""
    return "\b\n" + "\n".join([f"Example{'s' * (len(lines) > 1)}:", *(f"  {x}" for x in lines)])


def main(
    command: click.Command, arguments: Sequence[str] | None = None, name: str | None = None
) -> int:
    """Runs a click command and returns the exit code: `sys.exit(main(command))`.

    Args:
        command: its body returns an exit code, or None for 0.
        arguments: instead of `sys.argv[1:]`.
        name: what its help calls it, instead of `program()`.

    Raises:
        Exception: a bug in the command, unchanged.
    """
    keep_streams_alive()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings(), interruptible(), file_faults():
            if not sys.warnoptions:  # someone who asks for warnings (python -W) gets them
                warnings.simplefilter("ignore")
            for argument in given:
                check_text("argument", argument, "rename it")
            # Not `command.main`, which ends the process at any broken pipe.
            with command.make_context(
                name or program(), given, help_option_names=["-h", "--help"]
            ) as context:
                code = command.invoke(context)
    except click.exceptions.Exit as error:  # -h, --help
        return error.exit_code
    except click.ClickException as error:
        return _refuse(_click_message(error))
    except UserError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def file_faults() -> Iterator[None]:
    """What a path can run into inside the block becomes the user's error.

    Raises:
        UserError: a file can't be read or written, or the locale can't say its name.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        # A configuration is UTF-8 everywhere; the names in it are files of this locale.
        raise UserError(
            f"'{error.object}': is no name of a file in this locale; set LC_ALL=C.UTF-8"
        ) from error
    except OSError as error:
        if error.errno not in FILE_FAULTS:
            raise
        raise UserError(f"{error.filename or 'output'}: {error.strerror}") from error


def print_descriptions(described: Mapping[str, str]) -> None:
    """Prints names and what each is, in two columns as help has them.

    Raises:
        UserError: standard output could not be written.
    """
    formatter = click.HelpFormatter(width=min(100, shutil.get_terminal_size().columns))
    formatter.write_dl(list(described.items()))
    print(formatter.getvalue(), end="")
    check_printed("try again")


def program() -> str:
    """`python -m toolagent.run` as it was typed, as far as Python knows."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    if specification is None:
        return sys.argv[0]
    return f"python -m {specification.name.removesuffix('.__main__')}"


def check_printed(instead: str) -> None:
    """Refuses to end with success if a command's only result, its output, was lost.

    Args:
        instead: what else the user could do.

    Raises:
        UserError: standard output could not be written, and the reader did not close it.
    """
    fault = output_fault()
    if fault is not None:
        raise UserError(f"standard output: {fault.strerror}; the result is lost; {instead}")


def one_line(text: object) -> str:
    """The text on one line that any terminal can show: line breaks become spaces, and characters
    that are not printable (a file name may hold any) become escapes."""
    line = " ".join(part.strip() for part in str(text).splitlines())
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in line
    )


def brief(error: BaseException) -> str:
    """An error's class and the beginning of its message, on one line."""
    return f"{type(error).__name__}: {one_line(error)[:120]}"


def console() -> Console:
    """Standard output; text in [brackets] is printed as it is, numbers are not coloured. Where it
    is no terminal, lines stay whole, however narrow COLUMNS says it is.

    A notebook is none, though its kernel sets FORCE_COLOR: a cell keeps each picture of a live
    line. Its text is text, not an output for every line.
    """
    console = Console(markup=False, highlight=False)
    if console.is_jupyter:
        console = Console(markup=False, highlight=False, force_jupyter=False, force_terminal=False)
    console.soft_wrap = not console.is_terminal
    return console


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table with these headings, narrow enough for 80 columns.

    Args:
        columns: the headings, from left to right.
        right: those whose cells (numbers) are flush right.
    """
    right = set(right)
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for column in columns:
        result.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return result


def print_table(console: Console, table: Table) -> None:
    """Prints the whole table; on a terminal that is too narrow, in parts (`fitted_table`)."""
    unlimited = console.options.update(max_width=1000)
    for number, part in enumerate(fitted_table(console, table)):
        part.width = console.measure(part, options=unlimited).maximum
        console.print(*[""] * (number > 0), part, sep="\n", crop=False, soft_wrap=True)


def fitted_table(console: Console, table: Table, spare: int = 0) -> list[Table]:
    """The table as a terminal can show it: no cell and no word is broken or cut.

    One that is too wide has its headings on several lines. If that is not enough, its columns
    come in several tables, below one another, each with the first column.

    Args:
        console: where it is not a terminal, any table fits.
        table: of texts.
        spare: columns of the terminal that are to stay free.
    """
    unlimited = console.options.update(max_width=1000)

    def fits(table: Table) -> bool:
        return console.measure(table, options=unlimited).maximum <= console.width - spare

    if not console.is_terminal or fits(table):
        return [table]
    kept: list[int] = [0]
    parts = []
    for number in range(1, len(table.columns)):
        if len(kept) > 1 and not fits(_with_columns(table, [*kept, number])):
            parts.append(_with_columns(table, kept))
            kept = [0]
        kept.append(number)
    return [*parts, _with_columns(table, kept)]


def _with_columns(table_: Table, kept: Sequence[int]) -> Table:
    """These columns of a table, with their headings on several lines."""
    result = table()
    columns = [table_.columns[number] for number in kept]
    for column in columns:
        cells = [str(cell) for cell in column.cells]
        words = str(column.header).split()
        width = max(map(len, [*cells, *words]), default=1)
        heading = "\n".join(textwrap.wrap(" ".join(words), width, break_on_hyphens=False))
        result.add_column(heading, justify=column.justify, no_wrap=True)
    cells = [[*column.cells] for column in columns]
    for number, row in enumerate(table_.rows):
        result.add_row(*(column[number] for column in cells), style=row.style)
    return result


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints sentences. On a terminal, lines are broken between words and go on two columns
    further right; in a log they stay whole.

    Not for what will be copied from the terminal, such as a command line: print that with
    `soft_wrap=True`, so that the terminal knows it as one line.
    """
    if console.is_terminal:
        text = "\n".join(_wrapped(line, console.width) for line in text.split("\n"))
    console.print(text, style=style, soft_wrap=True)


def _wrapped(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def stage_table(
    task: Task, stages: Sequence[StageAccuracy], trained: Container[int] | None = None
) -> Table:
    """The table of accuracies; `trained` are the stages that the agent was trained on, if known."""
    judgements = judgements_of(stages)
    right = ("problems", "solved", "accuracy", *judgements)
    rows = [*stage_rows(task, stages, trained)]
    named = any(problem for _, problem, _ in rows)  # not where the task has no formulas
    result = table("stage", *["problem"] * named, *right, right=right)
    for stage, problem, row in rows:
        result.add_row(
            stage,
            *[problem] * named,
            f"{row.problems:,}",
            f"{row.solved:,}",
            accuracy_text(row.solved, row.problems),
            *judged_cells(row),
        )
    return result


def stage_rows(
    task: Task, stages: Iterable[StageAccuracy], trained: Container[int] | None
) -> Iterator[tuple[str, str, StageAccuracy]]:
    """Stage, problem and figures of each line of a table: a stage, and below it its other splits.

    A `star` marks what the agent was not trained on.
    """
    for row in stages:
        mark = star(row.stage, trained)
        yield str(row.stage), task.formula(row.stage) + mark, row
        for other in row.other_splits:
            yield "", f"  {words(other.split)}{mark}", other


def star(stage: int, trained: Container[int] | None) -> str:
    """'*' for a stage that the agent was not trained on; nothing if that is not known."""
    return "" if trained is None or stage in trained else "*"


def judgements_of(stages: Iterable[StageAccuracy]) -> list[str]:
    """The headings of what was judged besides right answers; [] if nothing was."""
    first = next(iter(stages), None)
    return [name.replace("_", "\n") for name in first.judged] if first else []


def judged_cells(row: StageAccuracy) -> list[str]:
    """The cells below those headings."""
    return [accuracy_text(count, row.problems) for count in row.judged.values()]


def stage_notes(stages: Sequence[StageAccuracy], trained: Container[int] | None) -> list[str]:
    """The lines below such a table: which figures are samples, and what the star means."""
    notes = []
    sampled = [row for row in stages if row.split is not None]
    if sampled:
        first = sampled[0]
        kind = "of each stage" if first.split == ALL else words(first.split)
        counts = f"{first.problems:,} {kind}"
        below = {other.split: other for row in sampled for other in row.other_splits}
        for other in below.values():
            counts += f", and below them {other.problems:,} {words(other.split)}"
        which = ", ".join(str(row.stage) for row in sampled)
        which = f"stages {which} are" if len(sampled) > 1 else f"stage {which} is"
        notes.append(f"{which} measured on a fixed sample, not on all problems:\n{counts}")
    if any(row.complete and row.other_splits for row in stages):
        notes.append("below a stage whose problems were all played: what some of them came to")
    if trained is not None and any(row.stage not in trained for row in stages):
        notes.append("* not trained on")
    return notes


def words(name: str | None) -> str:
    """A name with spaces: 'held_out' is 'held out'."""
    return str(name).replace("_", " ")


def accuracy_text(solved: int, problems: int) -> str:
    """The share as a percentage, rounded *down*: '100%' and '0%' mean all and none.

    accuracy_text(99_999, 100_000) == "99.999%", accuracy_text(9_999_999, 10_000_000) too, and
    accuracy_text(1, 10_000_000) == "<0.001%".

    Raises:
        ValueError: not 0 <= solved <= problems, or no problems.
    """
    if not 0 <= solved <= problems or problems == 0:
        raise ValueError(f"solved {solved} of {problems}: expected 0 <= solved <= problems > 0")
    if solved == problems:
        return "100%"
    if solved == 0:
        return "0%"
    thousandths = solved * 100_000 // problems  # of a per cent
    return f"{thousandths // 1000}.{thousandths % 1000:03d}%" if thousandths else "<0.001%"


def solved_text(solved: int, problems: int) -> str:
    """The main figure: 'solved 100,000/100,000'."""
    return f"solved {solved:,}/{problems:,}"


def _refuse(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def _click_message(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        options = error.ctx.command.get_params(error.ctx) if error.ctx else []
        known = [name for parameter in options for name in parameter.opts]
        flags = [name for name in known if name.startswith("--")]
        return f"no option '{error.option_name}'; {nearest(error.option_name, flags)}"
    message = error.format_message().rstrip(".")
    return message[:1].lower() + message[1:]
