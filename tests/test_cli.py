"""How commands end, and how accuracies are shown."""

from __future__ import annotations

import errno
import os
import subprocess
import warnings

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolagent import cli
from toolagent.errors import UserError, quoted


def command_that(body):
    """A command with one flag and one argument, whose body is `body()`."""

    @click.command()
    @click.option("--number", type=int)
    @click.argument("word", default="")
    def command(number, word):
        return body()

    return command


def raising(error):
    def body():
        raise error

    return command_that(body)


def run(command, *arguments):
    return cli.main(command, list(arguments))


def refusal(capsys):
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (3, 3), ("text", 0)])
def test_the_exit_code_is_what_the_body_returns(returned, code, capsys):
    assert run(command_that(lambda: returned)) == code
    assert capsys.readouterr() == ("", "")


def test_help_is_clicks_own_and_ends_with_0(capsys):
    assert run(command_that(lambda: 7), "--help") == 0
    captured = capsys.readouterr()
    assert "--number INTEGER" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--numbr", "3"], "no option '--numbr'; did you mean '--number'?"),
        (["--zzz"], "no option '--zzz'; known: --help, --number"),
        (["-n"], "no option '-n'; known: --help, --number"),
        (["--number", "x"], "invalid value for '--number': 'x' is not a valid integer"),
        (["--number"], "option '--number' requires an argument"),
        (["a", "b"], "got unexpected extra argument (b)"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(arguments, line, capsys):
    assert run(command_that(lambda: 0), *arguments) == 2
    assert refusal(capsys) == line


@pytest.mark.parametrize(
    ("given", "path"),
    [("~/runs", "/home/of/a/user/runs"), ("a/~", "a/~"), ("s3://b/~", "s3://b/~"), ("", "")],
)
def test_a_tilde_that_the_shell_left_is_the_home_folder(given, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/a/user")
    got = []
    flag = click.Option(["--output-dir", "folder"], type=cli.PATH)
    command = click.Command("command", callback=lambda folder: got.append(folder), params=[flag])
    assert cli.main(command, [f"--output-dir={given}"]) == 0
    assert got == [path]


def test_a_user_error_is_one_line_whatever_it_holds(capsys):
    assert run(raising(UserError("first\n  second\x1b[31m \udcff é [bold]"))) == 2
    assert refusal(capsys) == r"first second\x1b[31m \udcff é [bold]"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOSPC])
def test_a_path_that_cannot_be_used_is_a_users_error(number, capsys):
    assert run(raising(OSError(number, "why not", "some/file"))) == 2
    assert refusal(capsys) == "some/file: why not"


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("bug"),
        KeyError("bug"),
        OSError(errno.EBADF, "bug"),
        EOFError("bug"),
        AssertionError(),
    ],
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)) as caught:
        run(raising(bug))
    assert caught.value is bug


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_ends_with_130(interrupt, capsys):
    assert run(raising(interrupt)) == 130
    captured = capsys.readouterr()
    assert (captured.out, captured.err.strip()) == ("", "")


def test_python_warnings_are_not_shown_and_come_back_afterwards(monkeypatch):
    monkeypatch.setattr("sys.warnoptions", [])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert run(command_that(lambda: warnings.warn("inside", stacklevel=1))) == 0
        warnings.warn("outside", stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["outside"]


@pytest.mark.parametrize(
    ("solved", "problems", "text"),
    [
        (100_000, 100_000, "100%"),
        (99_999, 100_000, "99.999%"),
        (9_999_999, 10_000_000, "99.999%"),
        (1, 10_000_000, "<0.001%"),
        (0, 1_000, "0%"),
        (1, 3, "33.333%"),
        (2, 3, "66.666%"),
        (97, 1_000, "9.700%"),
        (1, 1, "100%"),
    ],
)
def test_accuracy_is_rounded_down(solved, problems, text):
    assert cli.accuracy_text(solved, problems) == text


@given(st.integers(1, 10**9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_only_all_is_100_and_only_none_is_0(counts):
    solved, problems = counts
    text = cli.accuracy_text(solved, problems)
    assert (text == "100%") == (solved == problems)
    assert (text == "0%") == (solved == 0)
    assert not text.startswith("100.")


@pytest.mark.parametrize(("solved", "problems"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_a_bug(solved, problems):
    with pytest.raises(ValueError, match="expected"):
        cli.accuracy_text(solved, problems)


def test_full_output_is_a_users_error(capsys):
    assert run(raising(OSError(errno.ENOSPC, "No space left on device"))) == 2
    assert refusal(capsys) == "output: No space left on device"


def test_a_narrow_terminal_hides_no_figure(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    table = cli.table("number", "word")
    table.add_row("1234567890", "[word]")
    cli.print_table(cli.console(), table)
    assert "1234567890  [word]" in capsys.readouterr().out


def test_counts_are_shown_in_full():
    assert cli.solved_text(100_000, 100_000) == "solved 100,000/100,000"


@pytest.mark.parametrize(
    "path", ["t v", "n\u00e9", "a'b", '"$x`', "a\nb\\c'", "a\udcffb\n", "s3://b/c d", "\u200b1"]
)
def test_a_quoted_path_can_be_pasted_into_a_command(path):
    word = quoted(path)
    assert word.isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert os.fsdecode(said.stdout) == path


def test_a_quoted_path_is_no_option():
    assert quoted("-x y") == "'./-x y'"


@pytest.mark.parametrize("columns", ["40", "1"])
def test_lines_of_a_log_stay_whole(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    text = "word " * 50 + "end"
    cli.console().print(text)
    assert capsys.readouterr().out == f"{text}\n"
