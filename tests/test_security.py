"""Who is let in, and what is never executed: against live runs and hostile files."""

from __future__ import annotations

import ast
import copy
import hashlib
import http.client
import json
import os
import pickle
import re
import stat
import time
from collections import deque
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from bombs import Bomb, plant
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from processes import kill, lines_of, own_environment, start
from refusals import COMMANDS
from run_folders import PROGRESS, edit_json, list_files, write_run
from test_recorder import record
from trained import ROOT, untrained_expression_network, untrained_network

from toolagent import cli
from toolagent.checkpoints import manifest
from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.checkpoints.run_files import RunState
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.state_files import encode_state
from toolagent.checkpoints.training_state import best_checkpoint
from toolagent.cluster.token import prepare_token
from toolagent.config import build_algorithm_config, documents, load_settings
from toolagent.errors import UserError
from toolagent.evaluate.problem_files import read_problems
from toolagent.export import writing
from toolagent.report.run_files import read_run
from toolagent.rollouts.records import read_episodes
from toolagent.run.start import resumed_start
from toolagent.serve.agents import Agents, load_agents
from toolagent.tasks import TASKS, get_task
from toolagent.tune.search import search_from_texts

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


@pytest.mark.full
@pytest.mark.parametrize("path", PATHS)
@each_stranger
def test_the_dashboard_lets_no_stranger_in(live, path, headers, status):
    assert status_of(live[0], path, headers) == status


@pytest.mark.full
@each_stranger
def test_no_stranger_submits_a_job(live, headers, status):
    body = json.dumps({"entrypoint": "true"})
    headers = headers | {"Content-Type": "application/json"}
    assert status_of(live[0], "/api/jobs/", headers, "POST", body) == status


@pytest.mark.full
@pytest.mark.parametrize("path", PATHS)
def test_the_owner_of_the_token_gets_in(live, path):
    netloc, token = live
    assert status_of(netloc, path, {"Authorization": f"Bearer {token.read_text()}"}) == 200


@pytest.mark.full
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


def test_a_cluster_without_a_token_is_warned_of(home, monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    prepare_token(create=True)
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: RAY_AUTH_MODE=disabled") and not captured.out
    assert list(home.iterdir()) == []


# Hostile files ------------------------------------------------------------------------------


def test_the_bomb_would_go_off(tmp_path):
    plant(tmp_path, tmp_path / "mark", ["state.pkl"])
    for name, load in {
        "state.pkl": lambda file: pickle.loads(file.read_bytes()),
        "weights.pt": lambda file: torch.load(file, weights_only=False),
    }.items():
        (tmp_path / "mark").unlink(missing_ok=True)
        load(tmp_path / name)
        assert (tmp_path / "mark").exists(), name


def sound_run(folder):
    """A run that could be resumed, evaluated, served, exported and reported."""
    write_run(folder, config="task: calculator\nalgorithm: toolagent\nseed: 0\n")
    (folder / "progress.jsonl").write_text(PROGRESS)
    return folder / "checkpoints" / "checkpoint_000003"


NOBODY = "127.0.0.1:1"  # an address that ends `run` where it would join a cluster
# Every command that reads a checkpoint or a run, and how it ends with what is planted beside.
READERS = {
    "evaluate run --problems problems.csv": 0,
    "explain run --stage 0 --digits 3,4,5": 0,
    "report run": 0,
    "export run --output-dir exported": 0,
    f"run --output-dir new --init-from run --address {NOBODY}": "no Ray cluster answers there",
    # Files that do not belong to it: not whole, whatever they are.
    f"run --resume run --address {NOBODY}": "does not belong to it",
    "run --resume run/checkpoints/checkpoint_000003": "does not belong to it",
}


def read(capfd, line):
    name, *arguments = line.split()
    with mock.patch.dict(os.environ):  # commands set variables for Ray
        code = cli.main(COMMANDS[name], arguments)
    return code, capfd.readouterr().err


@pytest.mark.parametrize("line", READERS)
def test_no_command_opens_a_pickle_beside_a_checkpoint(tmp_path, monkeypatch, capfd, line):
    if line.startswith("export"):
        # What takes minutes writes what was read by then.
        monkeypatch.setattr(writing, "export", lambda policy, folder, activity: 0)
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    (tmp_path / "problems.csv").write_text("stage,a,b,c,d,e\n0,1,2,3,,\n")
    checkpoint = sound_run(tmp_path / "run")
    for folder in (checkpoint, tmp_path / "run", checkpoint.parent):
        plant(folder, mark)
    code, err = read(capfd, line)
    expected = READERS[line]
    assert code == 0 if expected == 0 else (code == 2 and expected in err), err
    assert not mark.exists()


# Each of our own files as a pickle; with and without a manifest that says that this is right.
OWN_FILES = ("policy.json", "model.safetensors", "run.json", "state.json", "state.safetensors")
OWN_COMMANDS = (
    "evaluate run",
    "explain run",
    "serve run --port 0",
    "export run --output-dir exported",
    f"run --output-dir new --init-from run --address {NOBODY}",
    f"run --resume run --address {NOBODY}",
)


@pytest.mark.parametrize("manifest", ["right", "wrong", "absent", "a pickle"])
@pytest.mark.parametrize("name", OWN_FILES)
def test_no_command_opens_a_pickle_that_has_the_name_of_a_file_of_ours(
    tmp_path, monkeypatch, capfd, name, manifest
):
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    checkpoint = sound_run(tmp_path / "run")
    plant(checkpoint, mark, [name])
    (checkpoint / "weights.pt").unlink()
    if manifest == "right":
        if name == "model.safetensors":  # the policy's own sum says so too
            sum_of_it = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
            edit_json(checkpoint / "policy.json", weights_sha256=sum_of_it)
        list_files(checkpoint)
    elif manifest == "absent":
        (checkpoint / "manifest.json").unlink()
    elif manifest == "a pickle":
        (checkpoint / "manifest.json").write_bytes(pickle.dumps(Bomb(mark)))
    policy_is_whole = name not in ("policy.json", "model.safetensors")
    for line in OWN_COMMANDS:
        resumes = "--resume" in line
        if policy_is_whole and not resumes:
            continue  # the test above
        code, err = read(capfd, line)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (line, err)
        assert NOBODY not in err, err  # refused before it comes to that
        assert not mark.exists()


def test_what_is_served_opens_no_pickle(tmp_path):
    """The same calls with which a replica of the playground reads its checkpoints."""
    checkpoint = sound_run(tmp_path / "run")
    for folder in (checkpoint, tmp_path / "run"):
        plant(folder, tmp_path / "mark")
    agents = Agents(load_agents([str(tmp_path / "run")]))
    assert list(agents.policies) == ["run"] and agents.info.task == "calculator"
    assert not (tmp_path / "mark").exists()


def test_no_module_reads_pickles():
    """Of ours; only Tune's own state is pickled, which `tune --resume` leaves to Tune."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    calls = {"torch.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "os.system"}
    calls |= {"Algorithm.from_checkpoint", "eval", "exec"}
    found = set()
    for file in (ROOT / "toolagent").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names}
                names.add((getattr(node, "module", None) or "").split(".")[0])
                found |= {(file.name, name) for name in names & forbidden}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
                found.add((file.name, ast.unparse(node.func)))
            elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle"):
                found.add((file.name, node.arg))
    assert found == set()


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
CHECKPOINT_FUZZ = settings(FUZZ, max_examples=100)  # each reads a checkpoint of some files
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
    """A policy, or what is wrong, which a command prints in one line; never another exception."""
    try:
        load_policy(folder)
    except UserError as error:
        assert str(error).strip()


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


# Checkpoints: whatever is changed, they are torn, or of another version, or sound.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = sound_run(tmp_path_factory.mktemp("fuzzed") / "run")
    state = {"a": np.arange(3), "b": (1, {2: b"x"}, deque([1.5], 4)), "c": {3}, "d": np.int8(1)}
    for name, content in encode_state(state).items():
        (folder / name).write_bytes(content)
    list_files(folder)
    return folder


def takes_up_or_refuses(folder):
    """As `run --resume`, up to where it would start Ray."""
    config = folder.parents[1] / "config.yaml"
    try:
        settings = load_settings(config)
        start = resumed_start(RunFolder(folder.parents[1]), folder, settings, settings, CALCULATOR)
    except UserError as error:
        assert str(error).strip() and "a run is at work" not in str(error)
    else:
        state = start.state
        assert type(state.iteration) is int and 0 <= state.iteration < 2**63
        assert type(state.env_steps) is int and 0 <= state.env_steps < 2**63
        assert 0 <= state.time_s < float("inf")
    best_checkpoint(folder.parent)


CALCULATOR = build_algorithm_config(load_settings("default"))
VALUES = st.sampled_from([None, True, -1, 0, 2**64, 1e308, "", "x", [], {}, [[]], "../x"]) | JSON
KEYS = st.sampled_from(
    [
        "$",
        "items",
        "name",
        "dtype",
        "value",
        "class",
        "columns",
        "base64",
        "maxlen",
        "0",
    ]
) | st.text(max_size=4)


def places(document, found=None):
    """Every dict and list in a JSON document."""
    found = [] if found is None else found
    if isinstance(document, dict | list):
        found.append(document)
        for inner in document.values() if isinstance(document, dict) else document:
            places(inner, found)
    return found


def change(document, data):
    """One value somewhere in the document."""
    place = data.draw(st.sampled_from(places(document)))
    value = copy.deepcopy(data.draw(VALUES))  # a second change may be inside of it
    if isinstance(place, list):
        place[:] = [*place[1:], value]
    elif place and data.draw(st.booleans()):
        place[data.draw(st.sampled_from(sorted(place)))] = value
    else:
        place[data.draw(KEYS)] = value


@CHECKPOINT_FUZZ
@given(name=st.sampled_from(["manifest.json", "run.json", "state.json"]), data=st.data())
def test_any_edit_of_a_checkpoint_whose_sums_are_right(checkpoint, name, data):
    kept = {file: (checkpoint / file).read_bytes() for file in (name, "manifest.json")}
    document = json.loads(kept[name])
    try:
        if name == "manifest.json":
            del document["sha256"]
        for _ in range(data.draw(st.integers(1, 3))):
            change(document, data)
        if name == "manifest.json":
            (checkpoint / name).write_bytes(manifest._rendered(document))
        else:
            (checkpoint / name).write_text(json.dumps(document))
            list_files(checkpoint)
        takes_up_or_refuses(checkpoint)
    finally:
        for file, content in kept.items():
            (checkpoint / file).write_bytes(content)


@CHECKPOINT_FUZZ
@given(
    name=st.sampled_from(["manifest.json", "run.json", "state.json", "state.safetensors"]),
    content=st.binary(max_size=80) | st.sampled_from([b"[" * 5000, b"1" * 5000, b'"\\ud800"']),
    place=st.floats(0, 1, exclude_max=True),
    listed=st.booleans(),
)
def test_any_bytes_in_a_checkpoint(checkpoint, name, content, place, listed):
    kept = {file: (checkpoint / file).read_bytes() for file in (name, "manifest.json")}
    at = int(place * len(kept[name]))
    try:
        (checkpoint / name).write_bytes(kept[name][:at] + content)
        if listed and name != "manifest.json":
            list_files(checkpoint)
        takes_up_or_refuses(checkpoint)
    finally:
        for file, sound in kept.items():
            (checkpoint / file).write_bytes(sound)


def test_the_checkpoint_that_is_fuzzed_is_sound(checkpoint):
    settings = load_settings(checkpoint.parents[1] / "config.yaml")
    start = resumed_start(
        RunFolder(checkpoint.parents[1]), checkpoint, settings, settings, CALCULATOR
    )
    assert start.state == RunState(3, 1000, 1.0)
    assert best_checkpoint(checkpoint.parent) == checkpoint


# Searches, and runs that are reported.

SEARCH = """\
base: default
settings: {training.gamma: 0.9}
space: {training.lr: {loguniform: [0.001, 0.01]}, training.entropy_coeff: {choice: [0.0, 0.1]}}
search: random
scheduler: asha
objective: env_steps
num_samples: 2
trial: {max_env_steps: 1000, max_time_s: 10.0}
asha: {grace_share: 0.1, reduction_factor: 3}
"""


def is_refused_or_read(function, *arguments):
    try:
        function(*arguments)
    except UserError as error:
        assert str(error).strip()


@CHECKPOINT_FUZZ
@given(data=st.data())
def test_any_edit_of_a_search(data):
    document = documents.parse(SEARCH, "search")
    for _ in range(data.draw(st.integers(1, 2))):
        change(document, data)
    try:
        text = documents.dump(document)
    except (UnicodeEncodeError, yaml.YAMLError):
        return  # a lone surrogate: no file holds one
    is_refused_or_read(search_from_texts, text, "task: calculator\n", "search.yaml")


@CHECKPOINT_FUZZ
@given(
    text=st.binary(max_size=60).map(lambda content: content.decode("latin-1")),
    place=st.floats(0, 1, exclude_max=True),
)
@example(text=" ", place=0.15625)  # 's pace:': a key is missing and another one unknown
def test_any_text_in_a_search(text, place):
    at = int(place * len(SEARCH))
    broken = SEARCH[:at] + text + SEARCH[at:]
    is_refused_or_read(search_from_texts, broken, "task: calculator\n", "search.yaml")


@CHECKPOINT_FUZZ
@given(data=st.data())
def test_any_edit_of_the_rows_that_are_reported(tmp_path, data):
    if not (tmp_path / "config.yaml").exists():
        sound_run(tmp_path)
    document = json.loads(PROGRESS)
    change(document, data)
    (tmp_path / "progress.jsonl").write_text(json.dumps(document) + "\n")
    is_refused_or_read(read_run, tmp_path)


# Recorded episodes.


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """A sound file of recorded episodes."""
    folder = tmp_path_factory.mktemp("episodes")
    record(folder)
    (file,) = folder.rglob("*.parquet")
    return file


@pytest.mark.full
@CHECKPOINT_FUZZ
@given(
    place=st.floats(0, 1, exclude_max=True),
    content=st.binary(min_size=1, max_size=8),
    in_footer=st.booleans(),
)
def test_any_bytes_of_recorded_episodes(tmp_path, episodes, place, content, in_footer):
    sound = episodes.read_bytes()
    first = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little") if in_footer else 0
    at = first + int(place * (len(sound) - first))
    file = tmp_path / "x.parquet"
    file.write_bytes((sound[:at] + content + sound[at + len(content) :])[: len(sound)])
    read_episodes.cache_clear()
    is_refused_or_read(read_episodes, str(file), "calculator")


@CHECKPOINT_FUZZ
@given(
    metadata=st.dictionaries(
        st.sampled_from(["toolagent.schema_version", "toolagent.task", "x"]).map(str.encode),
        st.binary(max_size=8) | st.sampled_from([b"calculator", b"1", b"2"]),
        max_size=3,
    ),
    column=st.sampled_from(["stage", "actions", "rewards", "solved", "digits"]),
    values=st.none() | st.lists(st.integers(-128, 127) | st.none(), min_size=1, max_size=8),
)
def test_any_metadata_and_values_of_recorded_episodes(tmp_path, episodes, metadata, column, values):
    table = pq.read_table(episodes, partitioning=None)
    if values is not None:
        field = table.schema.field(column).with_nullable(True)
        kind = field.type
        row = [None if value is None else value % 2 for value in values]
        cell = row if pa.types.is_list(kind) else row[0]
        inner = pa.field("element", kind.value_type) if pa.types.is_list(kind) else None
        kind = pa.list_(inner) if inner else kind
        field = field.with_type(kind)
        cells = pa.array([cell] * len(table), kind if inner else pa.int8())
        position = table.schema.get_field_index(column)
        table = table.set_column(position, field, cells.cast(kind))
    kept = dict(table.schema.metadata)
    file = tmp_path / "x.parquet"
    pq.write_table(table.replace_schema_metadata(kept | metadata), file)
    read_episodes.cache_clear()
    is_refused_or_read(read_episodes, str(file), "calculator")
