"""Results on storage: a real S3 server (moto's), a store that fails, a local file system."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from google_storage_server import google_storage_server
from processes import free_port, output_of
from refusals import refusal
from s3_server import BUCKET, s3_server
from test_run import QUICK, rows_of, start
from trained import ROOT, run_modules, trained_network, untrained_network

from toolagent.checkpoints import storage as storage_module
from toolagent.checkpoints.mirror import Mirror
from toolagent.checkpoints.output import finish, new_run, run_to_resume
from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.checkpoints.run_folder import RunFolder
from toolagent.checkpoints.storage import Storage, StorageError, is_uri
from toolagent.errors import UserError
from toolagent.run import launch
from toolagent.run.environment import describe_environment

SUMMARY = {
    "env_steps": 1,
    "wall_time_s": 1.0,
    "env_steps_per_s": 1.0,
    "stopped_by": "time",
    "stages": [],
}

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        running.make_bucket()
        yield running


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-3:])
    }


def write_checkpoint(run, number, network=None):
    folder = run / "checkpoints" / f"checkpoint_{number:06d}"
    save_policy(folder, network or untrained_network(), "calculator", iteration=number)
    (folder / "algorithm").mkdir(exist_ok=True)
    (folder / "algorithm" / "state.bin").write_bytes(os.urandom(100))
    return folder


def small_run(path):
    """A run's folder with two checkpoints, one of them not finished."""
    folder = RunFolder(path)
    folder.make("task: calculator\n")
    folder.append_progress({"iteration": 1})
    write_checkpoint(path, 1)
    write_checkpoint(path, 2)
    (path / "checkpoints" / ".checkpoint_000003.partial").mkdir()
    (path / "checkpoints" / ".checkpoint_000003.partial" / "policy.json").write_text("{")
    (path / "tensorboard").mkdir()
    (path / "tensorboard" / "events.1").write_bytes(b"1")
    return folder


class Recording(Storage):
    """Notes the order of what is written and removed, and fails when it is told to."""

    def __init__(self, folder):
        from pyarrow.fs import LocalFileSystem

        super().__init__(LocalFileSystem(), str(folder), f"file://{folder}")
        self.log, self.fails_after = [], None

    def write(self, path, data):
        if self.fails_after is not None and len(self.log) >= self.fails_after:
            raise StorageError("the server does not answer")
        self.log.append(path)
        super().write(path, data)

    def remove_checkpoint(self, name):
        self.log.append(f"removed {name}")
        super().remove_checkpoint(name)


# The mirror ------------------------------------------------------------------------------


@pytest.mark.full
def test_a_folder_is_copied_and_only_what_is_new_is_copied_again(server, tmp_path):
    run = small_run(tmp_path / "run")
    storage = Storage.at(server.uri("mirror/a"), "--output-dir")
    mirror = Mirror(run.path, storage, pytest.fail)
    mirror.copy()
    assert server.objects("mirror/a") == files(run.path)
    assert not mirror.pending()

    run.append_progress({"iteration": 2})
    write_checkpoint(run.path, 3)
    for path in (run.path / "checkpoints" / "checkpoint_000001").rglob("*"):
        if path.is_file():
            path.unlink()
    (run.path / "checkpoints/checkpoint_000001/algorithm").rmdir()
    (run.path / "checkpoints/checkpoint_000001").rmdir()
    run.write_summary(SUMMARY | {"checkpoint": "checkpoints/checkpoint_000003"})
    assert mirror.pending()
    assert mirror.finish() is None
    assert server.objects("mirror/a") == files(run.path)


def test_a_checkpoint_s_last_file_is_sent_last_and_removed_first(tmp_path):
    run = small_run(tmp_path / "run")
    (run.path / "checkpoints/checkpoint_000002/manifest.json").write_text("{}")
    run.write_summary(SUMMARY)
    storage = Recording(tmp_path / "copy")
    mirror = Mirror(run.path, storage, pytest.fail)
    mirror.copy()
    first = [path for path in storage.log if "checkpoint_000001" in path]
    second = [path for path in storage.log if "checkpoint_000002" in path]
    assert first[-1].endswith("policy.json") and len(first) == 3
    assert second[-1].endswith("manifest.json") and len(second) == 4
    assert storage.log[-1] == "summary.json"
    progress = storage.log.index("progress.jsonl")
    assert progress < storage.log.index(first[0])
    # One that was written again is removed before it is sent again: it is never a mixture.
    storage.log.clear()
    write_checkpoint(run.path, 2, untrained_network(seed=5))
    mirror.copy()
    assert storage.log[0] == "removed checkpoint_000002"
    assert storage.log[-1].endswith("checkpoint_000002/manifest.json")


def test_a_copy_cut_short_anywhere_is_a_run_that_can_be_read(tmp_path):
    """Whatever was sent when it broke off, what is fetched holds complete checkpoints only."""
    run = small_run(tmp_path / "run")
    run.write_summary(SUMMARY)
    total = len(files(run.path))
    seen = set()
    for cut in range(total):
        storage = Recording(tmp_path / f"copy{cut}")
        storage.fails_after = cut
        with pytest.raises(StorageError):
            Mirror(run.path, storage, pytest.fail).copy()
        target = tmp_path / f"fetched{cut}"
        target.mkdir()
        if cut:
            storage.fetch(target, "--resume")
        names = sorted(path.name for path in target.glob("checkpoints/*"))
        seen.add(len(names))
        for name in names:
            assert files(target / "checkpoints" / name) == files(run.path / "checkpoints" / name)
    assert seen == {0, 1, 2}


def test_a_store_that_fails_is_told_of_once_and_tried_again(tmp_path):
    run = small_run(tmp_path / "run")
    storage = Recording(tmp_path / "copy")
    storage.fails_after = 1
    told = []
    mirror = Mirror(run.path, storage, told.append)

    def until(condition):
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert condition()

    mirror.request()
    until(lambda: len(told) == 1)
    mirror.request()
    time.sleep(0.2)
    assert len(told) == 1
    assert "can't be written (the server does not answer); the run goes on" in told[0]
    assert str(run.path) in told[0]
    storage.fails_after = None
    mirror.request()
    until(lambda: not mirror.pending())
    until(lambda: len(told) == 2)
    assert "can be written again" in told[1]
    assert mirror.finish() is None


def test_what_the_storage_does_not_take_stays_in_the_folder(tmp_path, monkeypatch, capsys):
    uri = f"file://{tmp_path}/copy"
    with new_run(uri, "calculator", pytest.fail) as folder:
        small_run(folder.path)
        monkeypatch.setattr(storage_module.Storage, "write", fail)
        assert not finish(folder)
        message = capsys.readouterr().err
    assert message.startswith(f"error: {uri} can't be written (the disk is full); the results are")
    assert str(folder.path) in message and message.count("\n") == 1
    assert (folder.path / "progress.jsonl").is_file()
    monkeypatch.undo()
    with run_to_resume_of(folder, uri):
        pass


def fail(*arguments):
    raise StorageError("the disk is full")


def run_to_resume_of(folder, uri):
    """The folder that was left can be copied by hand, and is a run then."""
    target = Path(uri.removeprefix("file://"))
    shutil.copytree(folder.path, target)
    shutil.rmtree(folder.path)
    return run_to_resume(uri, pytest.fail)


def test_the_staging_folder_goes_once_all_is_there(tmp_path):
    with new_run(f"file://{tmp_path}/copy", "calculator", pytest.fail) as folder:
        small_run(folder.path)
        expected = files(folder.path)
        assert finish(folder)
    assert not folder.path.exists()
    assert files(tmp_path / "copy") == expected


def test_a_run_that_breaks_off_is_copied_as_far_as_it_came(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        new_run(f"file://{tmp_path}/copy", "calculator", pytest.fail) as folder,
    ):
        small_run(folder.path)
        raise ZeroDivisionError
    assert (tmp_path / "copy/checkpoints/checkpoint_000002/policy.json").is_file()
    assert not folder.path.exists()


def test_a_run_that_can_t_be_fetched_whole_is_left_as_it_was(tmp_path, monkeypatch):
    place = small_run(tmp_path / "copy").path
    before = files(place)
    read = storage_module.Storage._read

    def failing(self, path):
        if "checkpoint_000002" in path:
            raise OSError(28, "No space left on device", path)
        return read(self, path)

    monkeypatch.setattr(storage_module.Storage, "_read", failing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "staged"))
    (tmp_path / "staged").mkdir()
    with (
        pytest.raises(OSError, match="No space left"),
        run_to_resume(f"file://{place}", pytest.fail),
    ):
        pytest.fail("half a run is resumed")
    assert files(place) == before  # what was not fetched is not removed there
    assert not list((tmp_path / "staged").iterdir())


def test_no_copy_is_made_of_a_folder_that_goes(tmp_path):
    run = small_run(tmp_path / "run")
    storage = Recording(tmp_path / "copy")
    mirror = Mirror(run.path, storage, pytest.fail)
    mirror.request()
    deadline = time.monotonic() + 20
    while mirror.pending() and time.monotonic() < deadline:
        time.sleep(0.01)
    mirror.request()  # as for the last two checkpoints of a run that is interrupted
    assert mirror.end()
    expected = files(run.path)
    shutil.rmtree(run.path)
    mirror.request()
    time.sleep(0.2)
    assert files(tmp_path / "copy") == expected
    assert not any(line.startswith("removed") for line in storage.log)


# Reading ---------------------------------------------------------------------------------


@pytest.mark.full
def test_a_policy_is_loaded_from_a_run_or_a_checkpoint_on_storage(server, tmp_path):
    run = small_run(tmp_path / "run")
    write_checkpoint(run.path, 7, trained_network())
    Mirror(run.path, Storage.at(server.uri("read/a"), "x"), pytest.fail).copy()
    for place in ("read/a", "read/a/checkpoints/checkpoint_000007"):
        policy = load_policy(server.uri(place), expected_task="calculator")
        assert policy.metadata["iteration"] == 7
        assert policy.place == server.uri("read/a/checkpoints/checkpoint_000007")
        assert not policy.folder.exists()
    client = server.client
    key = "read/a/checkpoints/checkpoint_000007/model.safetensors"
    client.put_object(Bucket=BUCKET, Key=key, Body=b"torn")
    with pytest.raises(UserError) as caught:
        load_policy(server.uri("read/a"))
    assert server.uri(key) in str(caught.value) and "is damaged" in str(caught.value)
    assert "/tmp/" not in str(caught.value)
    # A torn upload, its last file missing, is not taken for a checkpoint.
    client.delete_object(Bucket=BUCKET, Key=key.replace("model.safetensors", "policy.json"))
    assert load_policy(server.uri("read/a")).metadata["iteration"] == 2


@pytest.mark.full
def test_an_object_whose_name_leads_out_of_the_folder_is_refused(server, tmp_path):
    run = small_run(tmp_path / "run")
    Mirror(run.path, Storage.at(server.uri("evil/a"), "x"), pytest.fail).copy()
    server.client.put_object(Bucket=BUCKET, Key="evil/a/checkpoints/../../../x", Body=b"x")
    target = tmp_path / "target" / "deep" / "folder"
    target.mkdir(parents=True)
    with pytest.raises(UserError):
        Storage.at(server.uri("evil/a"), "x").fetch(target, "--resume")
    assert not list(tmp_path.rglob("x"))


# Wrong input -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["runs/first", "/srv/runs", "a:b", "runs/s3://x"])
def test_a_path_is_no_uri(text):
    assert not is_uri(text)


def test_one_slash_is_pointed_out():
    with pytest.raises(UserError, match=r"expected two slashes, 's3://\.\.\.'"):
        is_uri("s3:/bucket/runs")


def test_a_key_in_the_uri_is_never_shown():
    storage = Storage.at("s3://AKIA:SECRET@bucket/x?region=us-east-1", "--output-dir")
    assert storage.name == "s3://***@bucket/x?region=us-east-1"


def test_a_key_in_a_uri_is_in_no_file(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["run.py", "--output-dir", "s3://AKIA:SECRET@bucket/x"])
    command = describe_environment()["command"]
    assert command[1:] == ["--output-dir", "s3://***@bucket/x"]
    # config.yaml would hold it: the env runners read it there.
    arguments = ["--record-episodes", "s3://AKIA:SECRET@bucket/x"]
    line = refusal(capfd, "run", arguments, ["--record-episodes s3://***@bucket/x: "], tmp_path)
    assert "AKIA" not in line


@pytest.mark.full
def test_storage_that_cannot_be_used_is_refused_before_anything_is_started(
    server, tmp_path, monkeypatch, capfd
):
    (tmp_path / "file").write_text("mine")
    small_run(tmp_path / "run")
    write_checkpoint(tmp_path / "run", 1)
    Mirror(tmp_path / "run", Storage.at(server.uri("full"), "x"), pytest.fail).copy()
    nobody = f"endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=us-east-1"
    rows = [
        ("run", "--output-dir", server.uri("x", bucket="missing"), "bucket"),
        ("run", "--output-dir", f"s3://results/x?{nobody}", "does not answer"),
        ("run", "--output-dir", server.uri("full"), "not empty"),
        ("run", "--output-dir", f"file://{tmp_path}/file/below", "is a file"),
        ("run", "--output-dir", "s3://results/x?endpont_override=a", "endpont_override"),
        ("run", "--resume", server.uri("nothing"), "nothing there"),
        ("run", "--resume", server.uri("", bucket="missing"), "nothing there"),
        ("run", "--resume", "ftp://host/x", "'ftp'"),
        ("run", "--init-from", server.uri("nothing"), "nothing there"),
        ("evaluate", server.uri("nothing"), "nothing there"),
        ("explain", "gs:/bucket/x", "'gs://...'"),
        ("tune", "--output-dir", server.uri("tune"), "a path that all nodes mount"),
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "ray_session", pytest.fail)
    for name, *arguments, named in rows:
        refusal(capfd, name, arguments, [named])


class UnsignedIsDenied(BaseHTTPRequestHandler):
    """S3's answer to a request without a signature, at which moto fails with a bug of its own."""

    def do_GET(self):
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(200 if "Authorization" in self.headers else 403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, *_):
        pass


def check_denied(place, capfd):
    refusal(capfd, "run", ["--output-dir", place], ["access denied", "credentials"])


@pytest.mark.full
def test_wrong_keys_are_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "ray_session", pytest.fail)
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="1") as strict:
        strict.make_bucket()
        check_denied(strict.uri("x"), capfd)


@pytest.mark.full
def test_missing_keys_are_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "ray_session", pytest.fail)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in KEYS:
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), UnsignedIsDenied) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        options = f"endpoint_override=127.0.0.1:{store.server_port}&scheme=http&region=us-east-1"
        check_denied(f"s3://{BUCKET}/x?{options}", capfd)
        store.shutdown()


@pytest.mark.full
def test_storage_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(storage_module, "FIRST_ANSWER_WITHIN_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        options = f"endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http"
        storage = Storage.at(f"s3://results/x?{options}&region=us-east-1", "--output-dir")
        started = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0\.5 s"):
            storage.check_new("--output-dir")
        assert time.monotonic() - started < 5


# Whole runs ------------------------------------------------------------------------------


STORES = [
    pytest.param(s3_server, marks=pytest.mark.full, id="s3"),
    pytest.param(google_storage_server, marks=pytest.mark.cluster_real, id="gs"),
]


@pytest.fixture(scope="module")
def store(request):
    with request.param() as running:
        running.make_bucket()
        yield running


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_run_on_storage_is_resumed_evaluated_and_explained_there(store, tmp_path):
    server = store
    uri = server.uri("runs/first")
    limits = ("--stop-env-steps", 20_000)
    out, err = output_of(start("--output-dir", uri, *limits, *QUICK, cwd=tmp_path))
    assert err == "" and f"results in {uri}" in out
    assert f"report: '{uri.replace('?', '/report.html?')}'" in out
    there = server.objects("runs/first")
    summary = json.loads(there["summary.json"])
    assert f"{summary['checkpoint']}/policy.json" in there
    assert {"config.yaml", "progress.jsonl", "learning_curve.png"} <= there.keys()
    assert any(name.startswith("tensorboard/events.") for name in there)

    limits = ("--stop-env-steps", summary["env_steps"] + 10_000)
    out, err = output_of(start("--resume", uri, *limits, cwd=tmp_path))
    assert err == "" and f"at {summary['env_steps']:,} env steps" in out
    there = server.objects("runs/first")
    resumed = json.loads(there["summary.json"])
    assert resumed["env_steps"] > summary["env_steps"]
    rows = [json.loads(line) for line in there["progress.jsonl"].splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, resumed["iterations"] + 1))

    evaluated, explained = run_modules(
        ["-m", "toolagent.evaluate", uri, "--json", str(tmp_path / "e.json")],
        ["-m", "toolagent.explain", uri, "--stage", "0"],
        cwd=tmp_path,
    )
    assert evaluated.returncode == 0 and explained.returncode == 0
    assert "runs/first/checkpoints/checkpoint_" in evaluated.stdout
    counted = json.loads((tmp_path / "e.json").read_text())["stages"]
    expected = [stage["solved"] for stage in resumed["stages"]]
    assert [stage["solved"] for stage in counted] == expected
    # Nothing was written where the command was started.
    assert [path.name for path in tmp_path.iterdir()] == ["e.json"]


@pytest.mark.parametrize(
    "new_server",
    [
        pytest.param(s3_server, marks=pytest.mark.slow, id="s3"),
        pytest.param(google_storage_server, marks=pytest.mark.cluster_real, id="gs"),
    ],
)
def test_a_store_that_dies_in_mid_run_costs_nothing(new_server, tmp_path):
    with new_server() as server:
        server.make_bucket()
        process = start(
            *("--output-dir", server.uri("x"), "--stop-time-s", 6, *QUICK),
            *("--set", "run.checkpoint_every_s=1", "--set", "run.stop_when_solved=false"),
            cwd=tmp_path,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("until they are there"):
                break
        server.stop()
        out, err = output_of(process)
    staged = Path(lines[-1].split(" in ")[1].strip())
    assert process.returncode == 1
    assert out.count("can't be written (the server does not answer); the run goes on") == 1
    (line,) = err.splitlines()
    place = server.uri("x").partition("?")[0]
    assert line.startswith(f"error: {place}") and line.endswith(f"the results are in {staged}")
    assert json.loads((staged / "summary.json").read_text())["stopped_by"] == "time"
    assert rows_of(staged)
    (result,) = run_modules(["-m", "toolagent.evaluate", str(staged)], cwd=ROOT)
    assert result.returncode == 0
