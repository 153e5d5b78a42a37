"""Where Ray's sockets and logs are: a folder that suits them, or a message that names it."""

import os

import pytest

from toolagent.cluster.temporary_folder import prepare_temporary_folder
from toolagent.errors import UserError

SESSION = "ray/session_2026-01-31_23-59-59_000000_/sockets/plasma_store"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, "")  # is undone at the end, whatever the test sets
        monkeypatch.delenv(name)


def longest():
    return 107 - len(SESSION) - 1 - len(str(os.getpid()))


def of_length(base, length):
    return str(base) + "/" + "x" * (length - len(str(base)) - 1)


def unusable(tmp_path):
    (tmp_path / "file").touch()
    return [
        "relative",
        of_length(tmp_path, 107),
        of_length("/tmp", longest() + 1),  # pytest's own may be as long already
        f"{tmp_path}/é",
        f"{tmp_path}/file",
        "/proc",
    ]


@pytest.mark.parametrize("which", range(6))
def test_an_unusable_tmpdir_gives_way_to_tmp(tmp_path_factory, monkeypatch, which):
    monkeypatch.setenv("TMPDIR", unusable(tmp_path_factory.mktemp("t"))[which])
    prepare_temporary_folder()
    assert os.environ["TMPDIR"] == "/tmp"
    assert "RAY_TMPDIR" not in os.environ


def test_python_s_own_sockets_are_beside_ray_s_where_tmpdir_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", of_length(tmp_path, 107))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    prepare_temporary_folder()
    assert os.environ["TMPDIR"] == "/tmp"


@pytest.mark.parametrize("which", range(6))
def test_an_unusable_ray_tmpdir_is_refused(tmp_path_factory, monkeypatch, which):
    folder = unusable(tmp_path_factory.mktemp("t"))[which]
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(UserError, match=f"RAY_TMPDIR={folder}: .*; set RAY_TMPDIR to"):
        prepare_temporary_folder()


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_what_suits_ray_is_left_as_it_is(tmp_path_factory, monkeypatch, name):
    base = tmp_path_factory.mktemp("t")
    for folder in (base, f"{base}/new"):
        if len(str(folder)) <= longest():
            monkeypatch.setenv(name, str(folder))
            prepare_temporary_folder()
            assert {"RAY_TMPDIR", "TMPDIR"} & os.environ.keys() == {name}


def test_an_empty_name_counts_as_none(monkeypatch):
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setenv("RAY_TMPDIR", "")
    prepare_temporary_folder()
    assert not {"RAY_TMPDIR", "TMPDIR"} & os.environ.keys()
