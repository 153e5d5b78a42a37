"""Files that a user names: what stands under the name stays what it is."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from trained import untrained_network

from toolagent import cli
from toolagent.checkpoints.policy import save_policy
from toolagent.errors import UserError
from toolagent.evaluate import __main__ as evaluate
from toolagent.explain import __main__ as explain
from toolagent.files import check_writable, folder_fault, write_atomically, write_result

ROOT = Path(__file__).parents[1]


def read_later(fifo):
    """What somebody who waits at a FIFO's other end gets."""
    found = []
    thread = threading.Thread(target=lambda: found.append(fifo.read_bytes()), daemon=True)
    thread.start()
    return thread, found


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    file = tmp_path / "result"
    file.write_bytes(b"before")
    file.chmod(0o640)
    reader = file.open("rb")
    write_result(file, b"after")
    assert (file.read_bytes(), reader.read()) == (b"after", b"before")  # never half of each
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing yet"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, there, steps):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    if there:
        target.write_bytes(b"before")
    (tmp_path / "link1").symlink_to(Path("elsewhere") / "target")
    (tmp_path / "link2").symlink_to("link1")
    link = tmp_path / f"link{steps}"
    check_writable(link, "--json")
    write_result(link, b"after")
    assert link.is_symlink() and not target.is_symlink() and target.read_bytes() == b"after"
    assert list(target.parent.iterdir()) == [target]


def test_a_fifo_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    check_writable(tmp_path / "fifo", "--json")
    thread, found = read_later(tmp_path / "fifo")
    write_result(tmp_path / "fifo", b"result")
    thread.join(10)
    assert found == [b"result"] and (tmp_path / "fifo").is_fifo()


def test_a_device_is_written_to(tmp_path):
    """A device of its own: a fault here must not cost the machine its /dev/null."""
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        node.write_bytes(b"")
    except PermissionError:  # not root, or a file system without devices: a terminal is one too
        _, terminal = os.openpty()
        node = Path(os.ttyname(terminal))
    check_writable(node, "--json")
    write_result(node, b"result")
    assert stat.S_ISCHR(node.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "log"])
@pytest.mark.parametrize("pipe", [True, False], ids=["a pipe", "a file"])
def test_standard_output_gets_the_result_in_its_place(tmp_path, name, pipe):
    """Also where it is a file: what was printed before and after is not lost."""
    code = (
        "import sys; from pathlib import Path; from toolagent.files import *\n"
        f"path = Path({name!r}); check_writable(path, '--json')\n"
        "print('one'); write_result(path, b'two\\n'); print('three')"
    )
    with open(tmp_path / "log", "wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE if pipe else log,
            timeout=60,
            check=True,
        )
    if pipe and name == "log":
        assert (done.stdout, (tmp_path / "log").read_bytes()) == (b"one\nthree\n", b"two\n")
    else:
        found = done.stdout if pipe else (tmp_path / "log").read_bytes()
        assert found == b"one\ntwo\nthree\n"


def test_a_file_that_nothing_can_replace_is_written_in_place(tmp_path, monkeypatch):
    """A mount of its own, a sticky folder, a folder without permission."""

    def refuse(*_):
        raise OSError(16, "Device or resource busy")

    file = tmp_path / "result"
    file.write_bytes(b"before, longer")
    monkeypatch.setattr(os, "replace", refuse)
    write_result(file, b"after")
    assert file.read_bytes() == b"after" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(UserError):
        write_result(tmp_path / "new", b"")


def test_the_longest_name_that_a_file_can_have(tmp_path):
    for write in (write_atomically, write_result):
        write(tmp_path / ("n" * 255), b"result")
    assert len(list(tmp_path.iterdir())) == 1


def socket_at(path):
    import socket

    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("."),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("nowhere/file"),
        socket_at,
    ],
    ids=["folder", "link to a folder", "link to itself", "link into nothing", "socket"],
)
def test_what_cannot_be_written_is_refused_before(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("it"))
    with pytest.raises(UserError, match="--json it: "):
        check_writable(Path("it"), "--json")


@pytest.mark.parametrize("name", ["", "no/file", "file/below", "n" * 300])
def test_names_that_cannot_be_written_are_refused_before(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(UserError, match="--json"):
        check_writable(Path(name), "--json")


def test_folders(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    assert folder_fault(tmp_path / "a" / "b") is None
    for name in ("file", "file/below", "link", "link/below"):
        assert folder_fault(tmp_path / name) is not None, name


@pytest.mark.parametrize(
    ("module", "flag"),
    [(evaluate, "--json"), (explain, "--json"), (explain, "--html"), (explain, "--parquet")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_commands_write_so(tmp_path, module, flag):
    """A FIFO stays one, and its reader gets the whole result."""
    save_policy(tmp_path / "policy", untrained_network(), "calculator")
    (tmp_path / "problems.csv").write_text("stage,a,b,c,d,e\n0,1,2,3,4,5\n")
    given = ["--problems", str(tmp_path / "problems.csv")] if module is evaluate else []
    os.mkfifo(tmp_path / "fifo")
    thread, found = read_later(tmp_path / "fifo")
    arguments = [str(tmp_path / "policy"), *given, flag, str(tmp_path / "fifo")]
    assert cli.main(module.command, arguments) == 0
    thread.join(10)
    assert (tmp_path / "fifo").is_fifo() and len(found[0]) > 100
