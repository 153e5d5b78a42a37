"""An episode as a conversation: its turns, and where tokens were copied from."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from answering import PosedPeekTask
from browser import browser, needs_browser
from processes import wait_for
from test_responses import make_network
from test_serve_outside import http

from toolagent import cli
from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.envs import register_task
from toolagent.explain.__main__ import command
from toolagent.models.base import AgentNetwork, AttentionWeights, InitialState
from toolagent.models.registry import network_class
from toolagent.rollouts.conversation import Source, sources, turns
from toolagent.rollouts.play import GivenTokens, play
from toolagent.rollouts.trajectory import endings
from toolagent.serve.agents import Agents
from toolagent.serve.app import build_app
from toolagent.serve.schemas import requests_of
from toolagent.tasks import get_task

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = register_task(PosedPeekTask)()
POSED = "answering:PosedPeekTask"
PROBLEM = TASK.pose(None, asked="both", hidden=[2, 1])
LOOK, SAY, NONE = 3, 4, 5
PROGRAM = [0, LOOK, 2, LOOK, 1, SAY]
ANSWERS = [[NONE] * 2, [2, 1], [NONE] * 2, [2, 1], [NONE] * 2, [NONE] * 2]


class Looking:
    """Shows where it looks: (step, head) to a place; the others look at the first one."""

    def __init__(self, gates, *looks):
        self.gates, self.looks = gates, looks

    def attention_weights(self, context, stage, actions, lengths, responses):
        shape = (1, len(PROGRAM), 2)
        weights = torch.zeros(*shape, 6)  # 2 places of the prompt, 4 tokens of answers
        weights[..., 0] = 1
        for step, head, place, weight in self.looks:
            weights[0, step, head, 0] -= weight
            weights[0, step, head, place] += weight
        return AttentionWeights(
            context=weights[..., :2],
            answers=weights[..., 2:],
            gates=torch.tensor(self.gates).expand(shape),
            answer_steps=torch.tensor([[1, 1, 3, 3]]),
            answer_places=torch.tensor([[0, 1, 0, 1]]),
            answer_tokens=torch.tensor([[2, 1, 2, 1]]),
        )


def copied(network):
    actions, response = np.array([PROGRAM]), np.array([ANSWERS], np.int8)
    return sources(network, TASK, PROBLEM, actions, np.array([len(PROGRAM)]), response)[0]


def test_a_turn_ends_with_its_answer_or_the_episode():
    found = [(t.first, t.last, t.number, t.answer) for t in turns(TASK, ANSWERS)]
    assert found == [(0, 1, 1, (2, 1)), (2, 3, 2, (2, 1)), (4, 5, None, ())]
    assert len(turns(TASK, ANSWERS[:4])) == 2


def test_the_place_that_is_looked_at_most_is_the_source_if_its_token_was_written():
    looks = (
        (2, 0, 2, 0.9),  # token 2 of answer 1
        (4, 0, 5, 0.9),  # token 1 of answer 2, and with the other head of answer 1
        (4, 1, 3, 0.6),
        (5, 0, 2, 0.9),  # a token that was not written
    )
    even = copied(Looking([1.0, 1.0], *looks))
    assert even[:2] == [Source(None, 0, (0,), 1.0), None]  # the prompt is 0 1
    assert even[2] is None  # half of the weight is on a 0, and a 2 was written
    first = copied(Looking([2.0, -5.0], *looks))  # what takes from the logits copies nothing
    assert first[2].weight == pytest.approx(0.9) and first[4].weight == pytest.approx(0.9)
    assert (first[2].answer, first[2].text(TASK)) == (1, "answer 1: [2] 1")
    assert (first[4].answer, first[4].place, first[4].told) == (2, 1, (2, 1))
    assert first[5] is None and not any(copied(Looking([-1.0, 0.0], *looks)))


@pytest.mark.parametrize("name", ["stage_gru", "answer_attention"])
def test_explain_shows_calls_and_answers(name, tmp_path, capsys):
    """With what is answered to each call, and weights that are the network's own."""
    task = get_task("toolcall")
    torch.manual_seed(0)
    network = network_class(name)(task.interface)
    save_policy(tmp_path / name, network, "toolcall", env_steps=0, stages=())
    file = tmp_path / "out.json"
    asked = ["--expression", "B", "--database", "92 19 3 86 8 1 48 2"]
    assert cli.main(command, [str(tmp_path / name), *asked, "--json", str(file)]) == 0
    tables = [line for line in capsys.readouterr().out.splitlines()[2:] if "program:" not in line]
    assert max(map(len, tables)) <= 80
    document = json.loads(file.read_text())
    steps, conversation = document["steps"], document["conversation"]
    assert [token for turn in conversation for token in turn["call"]] == [
        step["token"] for step in steps
    ]
    told = [[t for t in step["response"] if t != "PAD"] for step in steps]
    assert [turn["answer"] for turn in conversation if turn["answer"]] == list(filter(None, told))
    copied = [step["copied_from"] for step in steps]
    assert name == "answer_attention" or not any(copied)
    for step, source in zip(steps, copied, strict=True):
        if source is not None:
            place = 0 if source["answer"] is None else source["place"]
            assert source["tokens"][place] == step["token"] and 0 < source["weight"] <= 1


def test_a_call_that_ends_the_episode_is_an_answer(tmp_path):
    """`ANS 4 =`: the last token is not the one that the vocabulary calls the answer."""
    task = get_task("toolcall")
    problems = task.pose(None, expression=["4", "4"])
    program = [task.vocabulary.token(name) for name in ("ANS", "4", "=")]
    given = np.full((2, task.max_actions), task.vocabulary.token("GET"))
    given[0, :3] = program
    network = network_class("stage_gru")(task.interface)
    batch = play(network, task, problems, chooser=GivenTokens(given))
    told, answered = endings(task, problems, batch)
    assert told == [4, None] and answered.tolist() == [True, False]


# The playground: what the agent is told in place of an answer -------------------------------------


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    save_policy(folder, make_network("encoder_decoder"), POSED, env_steps=0, stages=())
    return build_app(Agents({"agent": load_policy(folder, task=POSED)}), ["localhost"])


BOTH = {"asked": "both", "hidden": [2, 1], "given": ["0", "LOOK"]}


def test_a_told_answer_is_all_that_the_agent_knows_of_it(app):
    """From then on it does as with another machine that answers so; its own is unchanged."""
    as_it_was = http(app, "POST", "/api/play", BOTH)[1]
    other = http(app, "POST", "/api/play", BOTH | {"hidden": [0, 2]})[1]
    told = BOTH | {"answers": [{"step": 2, "tokens": ["0", "2"]}]}
    status, changed = http(app, "POST", "/api/play", told)
    assert status == 200 and changed["target"] == 21
    steps = changed["steps"]
    assert (steps[1]["response"], steps[1]["replaced"]) == (["0", "2"], ["2", "1"])
    assert not any("replaced" in step for step in as_it_was["steps"] + steps[:1] + steps[2:])
    last = 3 if "LOOK" in changed["program"][2:] else len(steps)
    for ours, theirs in zip(steps[:last], other["steps"][:last], strict=True):
        assert (ours["token"], ours["probabilities"]) == (theirs["token"], theirs["probabilities"])
    before = [step["probabilities"] for step in as_it_was["steps"]]
    assert [step["probabilities"] for step in steps[:2]] == before[:2]
    assert steps[2]["probabilities"] != before[2]
    # In a batch with others, too: each is told its own.
    asked = {"problems": [BOTH, told, BOTH | {"hidden": [0, 2]}]}
    results = http(app, "POST", "/api/play/batch", asked)[1]["results"]
    programs = [as_it_was["program"], changed["program"], other["program"]]
    assert [result["program"] for result in results] == programs


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"step": 1, "tokens": ["0"]}], "answers: step 1, 0, is not answered; answered are st"),
        ([{"step": 2, "tokens": ["0"] * 3}], "answers: step 2: 3 tokens; an answer has 2 at most"),
        ([{"step": 2, "tokens": []}] * 2, "answers: step 2 is there twice"),
        ([{"step": 90, "tokens": []}], "answers: step 90: the episode has "),
        (
            [{"step": 2, "tokens": ["7"]}],
            "answers: value no. 1: tokens: value no. 1 is none of 0 1",
        ),
        ([{"step": 0, "tokens": []}], "answers: value no. 1: step: is smaller than 1"),
        ([{"tokens": []}], "answers: value no. 1: step: is missing"),
    ],
)
def test_what_the_agent_cannot_be_told(app, answers, message):
    status, refusal = http(app, "POST", "/api/play", BOTH | {"answers": answers})
    assert status == 422 and refusal["detail"].startswith(message)


def test_where_tools_answer_nothing_there_is_nothing_to_change():
    assert "answers" not in requests_of(get_task("calculator"), ["digits"]).problem.model_fields


class Following(AgentNetwork):
    """Asks, writes the two digits that it is told, and says them."""

    def begin(self, context, stage):
        return InitialState((), torch.zeros(len(context), 3))  # steps, and the digits

    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        logits = torch.zeros(*previous_tokens.shape, self.interface.num_actions)
        for step in range(previous_tokens.shape[1]):
            steps, told = hidden[:, :1], hidden[:, 1:]
            heard = responses[:, step]
            told = torch.where(heard == NONE, told, heard.float())
            plan = torch.cat([torch.full_like(steps, LOOK), told, torch.full_like(steps, SAY)], 1)
            chosen = plan.gather(1, steps.long().clamp(max=3)).long()
            logits[:, step].scatter_(1, chosen, 20.0)
            hidden = torch.cat([steps + 1, told], 1)
        return logits, torch.zeros(previous_tokens.shape), hidden


@pytest.mark.full
@needs_browser
def test_a_visitor_changes_an_answer_and_sees_the_agent_follow(tmp_path):
    """By the keyboard, in a window as wide as a phone."""
    import uvicorn
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    save_policy(tmp_path, make_network("stage_gru"), POSED, env_steps=0, stages=())
    policy = replace(load_policy(tmp_path, task=POSED), network=Following(TASK.interface))
    app = build_app(Agents({"agent": policy}), ["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started and server.servers)
        port = server.servers[0].sockets[0].getsockname()[1]
        with browser(390, 844) as page:
            page.resize(390, 844)
            page.prefer(calm=True)
            page.open(f"http://127.0.0.1:{port}/", "Asked", "Hidden")

            def all_of(selector):
                return page.driver.find_elements(By.CSS_SELECTOR, selector)

            def said(lane):
                return all_of(".lane")[lane].find_elements(By.CSS_SELECTOR, ".chip, .answer")

            wait_for(lambda: all_of("#posed-hidden")[0].get_attribute("value"))
            for field, text in (("#posed", "both"), ("#posed-hidden", "2 1")):
                all_of(field)[0].clear()
                all_of(field)[0].send_keys(text)
            all_of("#posed-hidden")[0].send_keys(Keys.ENTER)
            wait_for(lambda: len(all_of(".lane")) == 1)
            told = [one.get_property("textContent") for one in said(0)]
            assert told == ["LOOK", "answer 1:2 1", "2", "1", "SAY"]

            all_of(".answer")[0].send_keys(Keys.ENTER)
            field = page.driver.switch_to.active_element
            field.send_keys(Keys.ESCAPE)
            assert not all_of(".tell")
            page.driver.switch_to.active_element.send_keys(Keys.ENTER)
            for wrong, reason in (("7", "'7' is no answer of a tool"), ("000", "at most")):
                field = page.driver.switch_to.active_element
                field.clear()
                field.send_keys(wrong, Keys.ENTER)
                wait_for(lambda reason=reason: reason in all_of(".tell .fault")[0].text)
            field.clear()
            field.send_keys("20", Keys.ENTER)
            wait_for(lambda: len(all_of(".lane")) == 2)
            assert [one.get_property("textContent") for one in said(1)] == [
                *("LOOK", "answer 1:2 0", "2", "0", "SAY")
            ]
            assert [one.get_property("textContent") for one in all_of(".differs")] == ["0"]
            all_of("#last")[0].click()
            verdict = all_of(".lane .verdict")[1].text
            assert "answers 20, the target is 21: wrong" in verdict and verdict.endswith(" 21")
            assert page.run("return document.documentElement.scrollWidth") <= 390
            page.keep("told")
            refused = [entry for entry in page.console() if "422" not in entry["message"]]
            assert refused == []
    finally:
        server.should_exit = True
        thread.join(30)
