"""`python -m toolagent.serve` as it is used: its API over HTTP, wrong requests, load, start, end.

One real server, with Ray Serve and two checkpoints, for all tests here and in
`test_playground_page.py` (the fixture `playground` in conftest.py).
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from playground import Server, save_two
from processes import listening_addresses, wait_for
from refusals import refusal
from trained import ROOT, is_refusal, trained_network

from toolagent.rollouts.play import play
from toolagent.tasks import get_task
from toolagent.tasks.tokens import VOCABULARY

pytestmark = pytest.mark.timeout(1200)


def request(server, method, path, body=None, **headers):
    """(status, headers in lower case, body)."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return response.status, names, response.read()
    finally:
        connection.close()


def ask(server, path="/api/play", **body):
    status, _, answer = request(server, "POST", path, body)
    return status, json.loads(answer)


# What it answers.


@pytest.mark.full
def test_no_pickle_beside_what_is_served_is_opened(playground):
    status, _ = ask(playground, stage=2, digits=[3, 4, 5, 6, 7])
    assert status == 200 and not playground.mark.exists()


def test_a_problem_is_played_step_by_step(playground):
    status, answer = ask(playground, digits=[3, 4, 5, 6, 7], model="after")
    assert status == 200
    assert answer["problem"] == "3*4+5-6*7" and answer["target"] == -25 and answer["stage"] == 2
    assert answer["program"] == ["MUL", "ADD", "STO", "MUL", "RCL", "SUB", "ANS"]
    assert answer["answer"] == -25 and answer["solved"] and answer["answered"]
    assert answer["verdict"] == "answers -25 = 3*4+5-6*7: right"
    assert [step["token"] for step in answer["steps"]] == answer["program"]
    assert [step["registers"]["acc"] for step in answer["steps"]] == [
        12,
        17,
        None,
        42,
        17,
        -25,
        -25,
    ]
    for step in answer["steps"]:
        assert len(step["probabilities"]) == 18
        assert sum(step["probabilities"]) == pytest.approx(1, abs=1e-4)
        assert VOCABULARY.names[int(np.argmax(step["probabilities"]))] == step["token"]


def test_given_tokens_come_first_and_everything_before_them_stays(playground):
    _, original = ask(playground, digits=[3, 4, 5, 6, 7], model="after")
    status, branch = ask(playground, digits=[3, 4, 5, 6, 7], model="after", given=["MUL", "SUB"])
    assert status == 200
    assert branch["program"][:2] == ["MUL", "SUB"]
    assert [step["given"] for step in branch["steps"][:3]] == [True, True, False]
    assert branch["steps"][0]["probabilities"] == pytest.approx(
        original["steps"][0]["probabilities"], abs=1e-5
    )
    assert branch["steps"][1]["registers"]["acc"] == 7


def test_a_batch_is_what_the_agent_plays(playground):
    """All of stage 0, in batches, against `play` in this process."""
    task = get_task("calculator")
    problems = task.problems(0, 0, 1000)
    expected = play(trained_network(), task, problems)
    programs, solved = [], 0
    for start in range(0, 1000, 250):
        posed = [{"digits": row[:3].tolist()} for row in problems.digits[start : start + 250]]
        status, answer = ask(playground, "/api/play/batch", problems=posed, model="after")
        assert status == 200
        programs += [result["program"] for result in answer["results"]]
        solved += answer["solved"]
    assert solved == int(expected.solved.sum())
    assert programs == [
        [VOCABULARY.names[token] for token in expected.actions[row, : expected.lengths[row]]]
        for row in range(1000)
    ]


def test_what_is_served_is_told(playground):
    status, _, body = request(playground, "GET", "/api/models")
    told = json.loads(body)
    assert status == 200
    assert told["task"] == "calculator" and told["tokens"] == list(VOCABULARY.names)
    assert [model["name"] for model in told["models"]] == ["before", "after"]
    assert [model["env_steps"] for model in told["models"]] == [1000, 2000]
    assert [stage["digits"] for stage in told["stages"]] == [3, 4, 5]
    assert str(Path.cwd()) not in body.decode() and "/tmp" not in body.decode()


def test_health_metrics_and_the_openapi_document(playground):
    assert request(playground, "GET", "/api/health")[2] == b'{"status":"ok"}'
    ask(playground, digits=[1, 2, 3])
    status, headers, body = request(playground, "GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    played = [s for s in families["toolagent_requests"].samples if s.labels["route"] == "/api/play"]
    assert sum(s.value for s in played if s.labels.get("status") == "200") >= 1
    assert {"toolagent_request_seconds", "toolagent_batch_size"} <= families.keys()
    document = json.loads(request(playground, "GET", "/openapi.json")[2])
    assert set(document["paths"]) == {
        "/api/play",
        "/api/play/batch",
        "/api/models",
        "/api/example",
        "/api/health",
        "/metrics",
    }


def test_every_answer_carries_the_security_headers(playground):
    for method, path in (
        ("GET", "/"),
        ("GET", "/main.js"),
        ("GET", "/none"),
        ("POST", "/api/play"),
    ):
        _, headers, _ = request(playground, method, path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]


# What it refuses.


@pytest.mark.parametrize(
    "body, status, named",
    [
        ({"digits": [3, 4, 5, "6", 7]}, 422, "digits: value no. 4 is no whole number"),
        ({"digits": [3, 4]}, 422, "3 (stage 0), 4 (stage 1), 5 (stage 2)"),
        ({"digits": [3, 4, 5], "given": ["JMP"]}, 422, "given: value no. 1 is none of 0 1 2 3"),
        ({"digits": [3, 4, 5], "model": "nobody"}, 404, "before, after"),
        ({"digits": [3, 4, 5], "x": 1}, 422, "x: unknown key; a problem has stage, digits, given"),
        ({"expression": "1+2"}, 422, "expression: unknown key"),
        ({"digits": [3, 4, 5], "seed": 1}, 422, "seed: unknown key"),
        ([], 422, "the body is no JSON object; send one, with Content-Type: application/json"),
        ({"digits": [3, 4, 5, 6, 77]}, 422, "digits: value no. 5 is larger than 9"),
        ({"digits": "345", "stage": 0}, 422, "digits: is no list"),
        ({"problems": []}, 422, "problems: unknown key"),
    ],
)
def test_a_wrong_request_is_told_why(playground, body, status, named):
    got, _, answer = request(playground, "POST", "/api/play", body)
    detail = json.loads(answer)["detail"]
    assert got == status and named in detail and "\n" not in detail


@pytest.mark.parametrize(
    "body", [b"{", b"", b"\xff\xfe", b"[" * 30_000, b'{"digits": [1, 2, NaN]}', b'"\\ud800"']
)
def test_what_is_no_json_is_refused(playground, body):
    status, _, answer = request(
        playground, "POST", "/api/play", body, **{"Content-Type": "application/json"}
    )
    assert status in (400, 422) and json.loads(answer)["detail"]


def test_one_wrong_problem_refuses_the_batch(playground):
    status, answer = ask(
        playground, "/api/play/batch", problems=[{"digits": [1, 2, 3]}, {"digits": [1]}]
    )
    assert status == 422 and answer["detail"].startswith("problem 2: digits: 1 numbers;")
    status, answer = ask(playground, "/api/play/batch", problems=[{"digits": [1, 2, 3]}] * 257)
    assert status == 422 and answer["detail"] == "problems: has more than 256 values"
    problems = [{"digits": [1, 2, 3]}, {"digits": [1, 2, None]}]
    status, answer = ask(playground, "/api/play/batch", problems=problems)
    assert status == 422
    assert answer["detail"] == "problem 2: digits: value no. 3 is no whole number"


@pytest.mark.parametrize("told", [True, False], ids=["content-length", "chunked"])
def test_a_large_body_is_refused(playground, told):
    body = b" " * 70_000
    headers = {"Content-Type": "application/json"}
    connection = http.client.HTTPConnection(urlsplit(playground.url).netloc, timeout=60)
    connection.request(
        "POST", "/api/play", body if told else iter([body]), headers, encode_chunked=not told
    )
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["detail"] == (
        "the request's body is larger than 65,536 bytes"
    )
    connection.close()
    assert request(playground, "GET", "/api/health")[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/", "/api/models", "/openapi.json", "/metrics"])
def test_another_host_s_name_is_refused(playground, host, path):
    status, _, body = request(playground, "GET", path, Host=host)
    assert status == 400 and b"Host" in body


@pytest.mark.parametrize(
    "path",
    ["/..%2f..%2fapp.py", "/%2e%2e/app.py", "/none", "/%00", "/api", "/static/", "//etc/passwd"],
)
def test_nothing_but_the_page_s_files_is_given_out(playground, path):
    status, _, _ = request(playground, "GET", path)
    assert status == 404


def test_methods_and_types_that_are_none(playground):
    assert request(playground, "GET", "/api/play")[0] == 405
    assert request(playground, "DELETE", "/")[0] == 405
    status, _, _ = request(
        playground, "POST", "/api/play", b"digits=1", **{"Content-Type": "text/x"}
    )
    assert status == 422


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "stage": VALUES | st.integers(-1, 4),
        "digits": VALUES | st.lists(st.integers(-1, 10), max_size=7),
        "expression": VALUES | st.text("0123456789+-*() x", max_size=40),
        "given": VALUES | st.lists(st.sampled_from([*VOCABULARY.names, "JMP", "18"]), max_size=9),
        "model": VALUES | st.sampled_from(["before", "after", "nobody"]),
        "problems": VALUES | st.lists(st.fixed_dictionaries({"digits": VALUES}), max_size=3),
    },
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "x-request-id",
            "serve_multiplexed_model_id",
            "x-request-timeout-seconds",
            "x-session-id",
            "Content-Type",
            "Accept",
            "Transfer-Encoding",
            "Cookie",
            "Range",
        ]
    ),
    st.binary(max_size=12).filter(lambda value: not set(value) & set(b"\r\n\0")),
    max_size=3,
)


@pytest.mark.full
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/api/play", "/api/play/batch", "/api/example", "/", "/main.js"]),
    method=st.sampled_from(["POST", "POST", "POST", "GET", "HEAD", "PUT"]),
    body=BODIES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60),
    headers=HEADERS,
)
def test_whatever_is_sent_is_never_the_server_s_fault(playground, path, method, body, headers):
    try:
        status, _, answer = request(
            playground, method, path, body, **{"Content-Type": "application/json", **headers}
        )
    except (http.client.HTTPException, ConnectionError):
        # It hung up on something that is no HTTP, and goes on serving.
        assert request(playground, "GET", "/api/health")[0] == 200
        return
    assert 200 <= status < 500, answer
    if status >= 400 and answer.startswith(b"{"):
        detail = json.loads(answer)["detail"]
        # No sentence of pydantic's ("Input should be ...") comes through.
        assert detail and "Input" not in detail and "not what is expected" not in detail


@pytest.mark.full
def test_the_openapi_document_is_kept(playground):
    """Requests and answers made and checked by Schemathesis from `/openapi.json`."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    schema = schemathesis.openapi.from_url(f"{playground.url}/openapi.json")
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    operations = 0
    for operation in schema.get_all_operations():
        operations += 1

        @settings(
            max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.ok().as_strategy())
        def check(case):
            case.call_and_validate(checks=checks)

        check()
    assert operations == 6


# Under load.


def load(server, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "load_client.py"), server.url, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.full
def test_each_of_100_clients_gets_the_answer_to_its_own_problem(playground):
    """The default model is the one that is often wrong, so the answers differ."""
    figures = load(playground, "100", "2")
    assert figures["requests"] >= 100
    assert figures["not_200"] == 0 and figures["not_own"] == 0
    assert 0 < figures["solved"] < figures["requests"]


@pytest.mark.full
def test_clients_that_hang_up_or_send_half_a_request_stop_nobody(playground):
    address = urlsplit(playground.url)
    half = b"POST /api/play HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{"
    held = []
    for number in range(40):
        connection = socket.create_connection((address.hostname, address.port), timeout=10)
        connection.sendall(half if number % 2 else b"\x16\x03\x01\x02\x00\x01\x00garbage\r\n\r\n")
        held.append(connection)
    for connection in held[::3]:
        connection.close()
    assert ask(playground, digits=[1, 2, 3])[0] == 200
    for connection in held:
        connection.close()
    assert ask(playground, digits=[1, 2, 3])[0] == 200


@pytest.mark.scaling
@pytest.mark.parametrize("pause, p99_ms", [("1", 50), ("0", 250)], ids=["1 request/s", "saturated"])
def test_latency_at_100_clients(playground, pause, p99_ms):
    load(playground, "100", "2", "--pause", pause)
    figures = load(playground, "100", "15", "--pause", pause)
    print(figures)
    assert figures["not_200"] == figures["not_own"] == 0
    assert figures["p99_ms"] < p99_ms


# Starting and ending.


def test_what_cannot_be_served_is_refused_before_ray_is_started(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ray, "init", pytest.fail)
    _, after = save_two(tmp_path)
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"\x08\x01")
    refusal(capfd, "serve", [onnx, "--port", 0], ["model.onnx", "ONNX"], tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        named = [f"127.0.0.1:{port}", "Address already in use"]
        refusal(capfd, "serve", [after, "--port", port], named, tmp_path)


@pytest.mark.full
def test_without_ray_serve_one_line_says_what_to_install(tmp_path):
    _, after = save_two(tmp_path)
    (tmp_path / "fastapi").mkdir()
    (tmp_path / "fastapi" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-m", "toolagent.serve", str(after), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert is_refusal(result)
    assert "fastapi is missing" in result.stderr and "[serve]'" in result.stderr


@pytest.mark.full
def test_ctrl_c_ends_it_and_leaves_nothing_behind(tmp_path):
    _, after = save_two(tmp_path)
    server = Server(str(after))
    children = server.processes()
    assert len(children) > 3
    assert ask(server, digits=[1, 2, 3])[0] == 200
    assert server.end(signal.SIGINT) == 130
    assert server.err == [] and len(server.out) == 2
    wait_for(lambda: not any(map(psutil.pid_exists, children)), "the end of all processes")
    port = urlsplit(server.url).port
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def test_it_listens_on_loopback_only(playground):
    main = psutil.Process(playground.process.pid)
    addresses = listening_addresses([main, *main.children(recursive=True)])
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"} and "127.0.0.1" in addresses
