"""How commands end, and how accuracies are shown."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import own_environment, wait_for

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


# Streams, signals and text, in a process of its own ----------------------------------------

COMMAND = """
import sys, time
from pathlib import Path
import click
from toolagent import cli

@click.command()
@click.option("--only-printed", is_flag=True)
@click.option("--sleep", is_flag=True)
@click.argument("word", default="word")
def command(only_printed, sleep, word):
    console = cli.console()
    for _ in range(3):
        console.print("a line \\xe9 \\u2500", word)
        print("a warning", file=sys.stderr)
    if sleep:
        try:
            Path("begun").touch()
            time.sleep(60)
        finally:
            Path("cleaned").touch()
    Path("result").write_text("whole")
    if only_printed:
        cli.check_printed("use --json")

sys.exit(cli.main(command))
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    return tmp_path


def shell(folder, line, **environment):
    """What a shell makes of the line, in which COMMAND is the command above."""
    program = f"'{sys.executable}' command.py"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("COMMAND", program)],
        cwd=folder,
        env=own_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
    )


GONE = [
    *("COMMAND | true", "COMMAND > /dev/full", "COMMAND > /dev/full 2>&1"),
    *("COMMAND >&-", "COMMAND 2>&-", "COMMAND <&- >&- 2>&-"),
]


@pytest.mark.full
@pytest.mark.parametrize("line", GONE)
def test_a_stream_that_is_gone_ends_no_command(line, script):
    done = shell(script, line)
    assert done.returncode == 0, done.stderr
    assert (script / "result").read_text() == "whole"
    assert b"Traceback" not in done.stderr


@pytest.mark.full
def test_a_terminal_that_is_gone_ends_no_command(script):
    controller, terminal = os.openpty()
    os.close(controller)  # writing to it is EIO from now on
    done = subprocess.run(
        [sys.executable, "command.py"],
        cwd=script,
        env=own_environment(),
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        timeout=60,
    )
    os.close(terminal)
    assert done.returncode == 0
    assert (script / "result").read_text() == "whole"


@pytest.mark.full
def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(script):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    long = "x" * 100_000  # more than a pipe holds
    with subprocess.Popen(
        [sys.executable, "command.py", long], cwd=script, env=own_environment(), stdout=writing
    ):
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert pipe.read().decode().replace("\n", "").count("x") == 3 * len(long)


@pytest.mark.full
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("COMMAND --only-printed > /dev/full", 2),
        ("COMMAND --only-printed >&-", 2),
        ("COMMAND --only-printed | true", 0),  # its reader wanted no more
        ("COMMAND --only-printed > printed", 0),
    ],
)
def test_a_result_that_is_only_printed_is_not_lost_without_a_word(line, code, script):
    done = shell(script, line)
    assert done.returncode == code
    assert (b"\nerror: standard output: " in done.stderr) == bool(code)


@pytest.mark.full
def test_what_a_stream_s_encoding_has_not_is_printed_as_an_escape(script):
    done = shell(script, "COMMAND", LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == rb"a line \xe9 \u2500 word"


@pytest.mark.full
@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("COMMAND $'a\\xff'", {}),
        ("COMMAND --word=$'\\xff'", {}),
        ("COMMAND n\xe9", {"LC_ALL": "C", "PYTHONUTF8": "0"}),
    ],
)
def test_an_argument_that_is_no_text_is_refused_in_one_line(line, environment, script):
    done = shell(script, line, **environment)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
    assert not (script / "result").exists()


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_after_it_has_cleaned_up(number, script):
    with subprocess.Popen(
        [sys.executable, "command.py", "--sleep"],
        cwd=script,
        env=own_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # this process may be under nohup
    ) as process:
        wait_for((script / "begun").exists, seconds=60)
        process.send_signal(number)
        assert process.wait(60) == 130
    assert (script / "cleaned").exists()


@pytest.mark.full
def test_a_hangup_that_is_ignored_stays_ignored(script):
    with subprocess.Popen(
        ["nohup", sys.executable, "command.py", "--sleep"],
        cwd=script,
        env=own_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_for((script / "begun").exists, seconds=60)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130


@pytest.mark.full
@pytest.mark.parametrize("where", ["cd $'d\\xff';", "TMPDIR=$PWD/$'d\\xff'"])
def test_a_folder_that_ray_cannot_name_is_refused_before_it_is_started(where, tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/d\xff")
    done = shell(tmp_path, f"{where} '{sys.executable}' -m toolagent.run --output-dir run")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1
    assert not list(tmp_path.rglob("run"))
