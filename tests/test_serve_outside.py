"""The playground with tasks of other modules (`strangers.py`): what is asked, and what is told."""

from __future__ import annotations

import asyncio
import json
import shutil

import numpy as np
import pytest
import strangers
from browser import browser, needs_browser
from playground import Server
from processes import wait_for
from pydantic import ValidationError
from refusals import refusal

from toolagent.serve.agents import Agents, load_agents
from toolagent.serve.app import build_app
from toolagent.serve.problems import Refused, example_of, keys_of, question_of
from toolagent.serve.schemas import requests_of
from toolagent.tasks import Task, get_task


def asked_of(task, **fields):
    return requests_of(task, keys_of(task)).problem(**fields)


def http(app, method, path, body=None):
    """(status, answer) of one request to the ASGI application, without a server."""
    sent, data = [], b"" if body is None else json.dumps(body).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "query_string": b""}
    scope |= {"headers": [*headers, (b"content-length", str(len(data)).encode())]}

    async def receive():
        return {"type": "http.request", "body": data}

    async def send(message):
        sent.append(message)

    asyncio.run(app({**scope, "http_version": "1.1", "scheme": "http"}, receive, send))
    return sent[0]["status"], json.loads(b"".join(part.get("body", b"") for part in sent[1:]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strangers")


@pytest.fixture(scope="module", params=["Bells", "Lifts", "Questions"])
def served(request, folder):
    """The application, its task and its network."""
    place = strangers.save_untrained(folder / request.param, request.param)
    agents = Agents(load_agents([str(place)], f"strangers:{request.param}"))
    return build_app(agents, ["localhost"]), agents.task


def test_drawn_problems_can_be_sent_back_and_are_played(served):
    app, task = served
    status, told = http(app, "GET", "/api/models")
    assert status == 200 and told["tokens"] == list(task.vocabulary.actions)
    name = "goal_floor" if task.name == "lifts" else "seed"
    assert told["posed_by"] == [{"name": name, "kind": "number", "length": None}]
    status, drawn = http(app, "GET", "/api/example")
    assert status == 200
    for asked in (told["example"], drawn):
        status, once = http(app, "POST", "/api/play", asked)
        assert status == 200, once
        again = http(app, "POST", "/api/play/batch", {"problems": [asked]})[1]
        assert again["results"][0]["program"] == once["program"]
        assert (once["stage"], once["target"]) == (asked["stage"], again["results"][0]["target"])
        at = 0
        for step in once["steps"]:
            at += {"UP": 1, "LIFT": 3}.get(step["token"], 0)
            assert len(step["probabilities"]) == task.vocabulary.num_actions
            assert step.get("response") == ([f"F{min(at, 9)}"] if task.response_length else None)
            assert step["registers"] == (
                {"at": at, "door": "open" if at else None} if task.name == "lifts" else {}
            )
    given = [*task.vocabulary.actions[:1], task.vocabulary.answer]
    status, branch = http(app, "POST", "/api/play", drawn | {"given": given})
    assert status == 200 and branch["program"] == given


@pytest.mark.parametrize("key", ["problem", "digits", "expression", "floor"])
def test_a_key_that_is_none_of_the_task_is_refused(key, served):
    app, task = served
    status, answer = http(app, "POST", "/api/play", {key: 3})
    assert status == 422 and answer["detail"].startswith(f"{key}: unknown key; a problem has ")
    assert keys_of(task)[0] in answer["detail"]


def test_a_problem_is_posed_in_the_words_of_its_task():
    lifts, rng = get_task("strangers:Lifts"), np.random.default_rng(0)
    assert question_of(lifts, asked_of(lifts, goal_floor=7)).problem.floor.tolist() == [7]
    assert set(example_of(lifts, 0, rng)) == {"stage", "goal_floor"}
    with pytest.raises(Refused, match=r"floors are 0\.\.9, not \[12\]"):
        question_of(lifts, asked_of(lifts, goal_floor=12))
    for wrong in (2**70, "7"):  # numbers, as `read` tells
        with pytest.raises(ValidationError):
            asked_of(lifts, goal_floor=wrong)


def test_a_drawn_problem_that_cannot_be_said_in_words_is_sent_back_by_its_seed():
    """A task with `pose` and without `read`: both keys are known, one at a time."""

    class Posed(strangers.Lifts):
        read = Task.read

    task = Posed()
    assert keys_of(task) == ("goal_floor", "seed")
    assert question_of(task, asked_of(task, goal_floor="7")).problem.floor.tolist() == [7]
    drawn = example_of(task, 1, np.random.default_rng(0))
    once, again = (question_of(task, asked_of(task, **drawn)).problem for _ in range(2))
    assert (once.context == again.context).all() and once.stage.tolist() == [1]
    for fields in ({}, {"goal_floor": "7", "seed": 3}):
        with pytest.raises(Refused, match="'goal_floor' or 'seed'"):
            question_of(task, asked_of(task, **fields))


def test_what_is_served_is_of_one_task(folder, capfd, monkeypatch):
    """Also where both tasks have the same tokens."""
    for task in ("Bells", "Questions"):
        strangers.save_untrained(folder / task, task)
    monkeypatch.chdir(folder)
    both = ["Bells", "Questions", "--task", "strangers:Bells"]
    refusal(
        capfd,
        "serve",
        [*both, "--port", 0],
        ["Questions is a checkpoint of the task 'strangers:Questions', not of 'strangers:Bells'"],
    )


@pytest.mark.full
@needs_browser
def test_a_real_server_finds_the_task_beside_it_and_the_page_shows_it(tmp_path):
    """Started from a folder that holds one file of code; the module has moved since training."""
    from selenium.webdriver.common.by import By

    strangers.save_untrained(tmp_path / "checkpoint", "Questions")
    shutil.copy(strangers.__file__, tmp_path / "mine.py")
    server = Server("checkpoint", "--task", "mine:Questions", cwd=tmp_path)
    try:
        with browser(log_requests=True) as chrome:
            chrome.prefer(calm=True)  # it does not play by itself
            chrome.driver.get(server.url)

            def all_of(selector):
                return chrome.driver.find_elements(By.CSS_SELECTOR, selector)

            def texts(selector):
                return [one.text for one in all_of(selector)]

            def click(selector):
                chrome.driver.find_element(By.CSS_SELECTOR, selector).click()

            def play_with(selector):
                before = all_of(".lane")
                click(selector)
                wait_for(lambda: all_of(".lane") != before, "another episode")

            wait_for(lambda: texts("#posed-label") == ["Problem number"], "the form")
            wait_for(lambda: texts(".lane"), "the example")
            play_with("#random")
            assert texts(".token .name") == ["UP", "LIFT", "RING"]
            assert texts(".registers dt") == ["answered with"]
            title = texts("#program-title")
            play_with("#problem .primary")  # what was drawn stands in the form
            assert texts("#program-title") == title  # the same problem
            click(".token[aria-pressed=false]")
            wait_for(lambda: len(texts(".lane")) == 2, "the branch")
            assert [entry for entry in chrome.console() if entry["level"] == "SEVERE"] == []
    finally:
        assert server.end() == 130
