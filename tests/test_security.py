"""Who is let in, and what is never executed: against live runs and hostile files."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import re
import stat
import time
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import kill, lines_of, own_environment, start
from trained import run_modules, untrained_expression_network, untrained_network

from toolagent.errors import UserError
from toolagent.policy import load_policy, save_policy
from toolagent.problem_files import read_problems
from toolagent.session.token import prepare_token
from toolagent.tasks import TASKS, get_task

# A live run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The dashboard's host:port and the token of a run that is under way."""
    folder = tmp_path_factory.mktemp("live")
    token = folder / ".ray" / "auth_token"
    environment = own_environment(HOME=str(folder))
    environment.pop("RAY_AUTH_TOKEN_PATH", None)
    command = ["--output-dir", "run", "--num-env-runners", "0", "--stop-time-s", "200"]
    command += ["--set", "run.stop_when_solved=false"]
    process = start("toolagent.run", *command, cwd=folder, env=environment)
    try:
        lines = lines_of(process.stdout)
        url = next(found[1] for line in lines if (found := re.search(r"dashboard: (\S+)", line)))
        yield urlsplit(url).netloc, token
    finally:
        kill(process)


def status_of(netloc, path, headers, method="GET", body=None):
    """The status that the dashboard answers with; it may need a while to come up."""
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection(netloc, timeout=30)
        try:
            connection.request(method, path, body, headers)
            return connection.getresponse().status
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        finally:
            connection.close()


PATHS = ["/api/version", "/nodes?view=summary", "/api/jobs/", "/api/v0/actors", "/logical/actors"]
# What they send, and how Ray answers: 401 where there is no token, 403 where it is a wrong one.
STRANGERS = {
    "none": ({}, 401),
    "wrong": ({"Authorization": "Bearer " + "0" * 64}, 403),
    "empty": ({"Authorization": "Bearer "}, 403),
    "cookie": ({"Cookie": "ray-authentication-token=" + "0" * 64}, 403),
}
each_stranger = pytest.mark.parametrize(
    ("headers", "status"), STRANGERS.values(), ids=STRANGERS.keys()
)


@pytest.mark.parametrize("path", PATHS)
@each_stranger
def test_the_dashboard_lets_no_stranger_in(live, path, headers, status):
    assert status_of(live[0], path, headers) == status


@each_stranger
def test_no_stranger_submits_a_job(live, headers, status):
    body = json.dumps({"entrypoint": "true"})
    headers = headers | {"Content-Type": "application/json"}
    assert status_of(live[0], "/api/jobs/", headers, "POST", body) == status


@pytest.mark.parametrize("path", PATHS)
def test_the_owner_of_the_token_gets_in(live, path):
    netloc, token = live
    assert status_of(netloc, path, {"Authorization": f"Bearer {token.read_text()}"}) == 200


def test_only_the_owner_can_read_the_token(live):
    _, token = live
    assert len(token.read_text()) >= 32
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


# The token's file ---------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, and an environment that says nothing of tokens."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_and_for_its_owner_only(home):
    prepare_token(create=True)
    token = home / ".ray" / "auth_token"
    text = token.read_text()
    assert (mode_of(token), mode_of(token.parent), len(text)) == (0o600, 0o700, 64)
    prepare_token(create=True)
    assert token.read_text() == text


def test_no_token_is_made_for_a_cluster_that_is_joined(home):
    prepare_token(create=False)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_token_is_replaced(home, text):
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(text)
    prepare_token(create=True)
    assert len(token.read_text()) == 64 and mode_of(token) == 0o600


def test_a_token_that_others_can_read_is_protected(home, monkeypatch):
    for token in (home / ".ray" / "auth_token", home / "elsewhere"):
        token.parent.mkdir(exist_ok=True)
        token.write_text("secret")
        token.chmod(0o644)
        prepare_token(create=True)
        assert mode_of(token) == 0o600
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "elsewhere"))


@pytest.mark.parametrize("create", [True, False])
def test_a_token_that_is_named_must_be_there(home, monkeypatch, create):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "token"))
    with pytest.raises(UserError, match="there is no such file; it must hold the cluster's token"):
        prepare_token(create)
    (home / "token").touch()
    with pytest.raises(UserError, match="is empty"):
        prepare_token(create)
    assert [path.name for path in home.iterdir()] == ["token"]


def test_a_cluster_without_a_token_is_warned_of(home, monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare_token(create=True)
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: RAY_AUTH_MODE=disabled") and not captured.out
    assert list(home.iterdir()) == []


# Hostile files ------------------------------------------------------------------------------


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.system, (f"touch '{self.mark}'",)


def test_the_bomb_would_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


PICKLES = (
    "class_and_ctor_args.pkl",
    "algorithm_state.pkl",
    "algorithm/class_and_ctor_args.pkl",
    "algorithm/algorithm_state.pkl",
    "algorithm/learner_group/learner/state.pkl",
    "model.pkl",
    "model.pt",
    "policy.pkl",
    "run.pkl",
)


def test_no_command_opens_a_pickle_that_lies_in_a_checkpoint(tmp_path):
    mark = tmp_path / "mark"
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "checkpoint_000001"
    save_policy(checkpoint, untrained_network(embedding_size=96), "calculator")
    state = {"iteration": 1, "env_steps": 10, "time_s": 1.0, "first_solved": {}}
    (checkpoint / "run.json").write_text(json.dumps(state))
    (run / "config.yaml").write_text("task: calculator\n")
    for name in PICKLES:
        for folder in (checkpoint, run):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    played, explained = run_modules(
        ["-m", "toolagent.evaluate", "run"],
        ["-m", "toolagent.explain", "run", "--stage", "0", "--digits", "3,4,5"],
        cwd=tmp_path,
    )
    assert (played.returncode, explained.returncode) == (0, 0)
    assert not mark.exists()


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A sound policy folder for each kind of network."""
    folder = tmp_path_factory.mktemp("policies")
    save_policy(folder / "calculator", untrained_network(embedding_size=4), "calculator")
    save_policy(folder / "expression", untrained_expression_network(), "expression")
    return folder


FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*TASKS, "StageGRUNetwork", "EncoderDecoderNetwork", "learned", "../..", 1]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def loads_or_is_refused(folder):
    """A policy, or one printable line that says what is wrong; never another exception."""
    try:
        load_policy(folder)
    except UserError as error:
        assert str(error) and "\n" not in str(error).strip()


@FUZZ
@given(kind=st.sampled_from(["calculator", "expression"]), data=st.data())
def test_any_edit_of_a_policy_json(policies, kind, data):
    folder = policies / kind
    file = folder / "policy.json"
    sound = file.read_bytes()
    document = json.loads(sound)
    place = data.draw(st.sampled_from([document, document["network"]]))
    place[data.draw(st.sampled_from(sorted(place)) | st.text(max_size=8))] = data.draw(JSON)
    try:
        file.write_text(json.dumps(document))
        loads_or_is_refused(folder)
    finally:
        file.write_bytes(sound)
    load_policy(folder)


@FUZZ
@given(
    kind=st.sampled_from(["calculator", "expression"]),
    name=st.sampled_from(["policy.json", "model.safetensors"]),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_any_byte_of_a_policy(policies, kind, name, place, byte, cut):
    file = policies / kind / name
    sound = file.read_bytes()
    at = int(place * len(sound))
    broken = sound[:at] if cut else sound[:at] + bytes([byte]) + sound[at + 1 :]
    try:
        file.write_bytes(broken)
        if name == "model.safetensors" and broken != sound:
            with pytest.raises(UserError, match="SHA-256"):
                load_policy(file.parent)
        else:
            loads_or_is_refused(file.parent)
    finally:
        file.write_bytes(sound)


CELLS = st.text(max_size=6) | st.sampled_from(["0", "1", "9", "-1", "(1+2)*3", '"', "'", "1+2"])
TABLES = st.builds(
    lambda header, rows, end: end.join([header, *(",".join(row) for row in rows)]),
    st.sampled_from(["stage,a,b,c,d,e", "expression", "stage,expression", "stage", "", "\ufeffa"]),
    st.lists(st.lists(CELLS, max_size=7), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


@FUZZ
@given(task=st.sampled_from(sorted(TASKS)), content=TABLES | st.binary(max_size=60))
def test_any_problem_file(tmp_path, task, content):
    file = tmp_path / "problems.csv"
    file.write_bytes(content)
    try:
        problems = read_problems(file, get_task(task))
    except UserError as error:
        assert str(error).startswith(str(file))
    else:
        assert len(problems) >= 1
