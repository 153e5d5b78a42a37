"""The HTTP API and the page, as an ASGI application: no Ray in it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.responses import FileResponse
from starlette.types import ASGIApp

from toolagent import __version__
from toolagent.serve.agents import Agents
from toolagent.serve.answers import play_answer_of, result_of
from toolagent.serve.faults import fault_of, problem
from toolagent.serve.figures import Figures
from toolagent.serve.guard import Guard
from toolagent.serve.player import Answer, Question
from toolagent.serve.problems import Refused, check_told, example_of, keys_of, question_of
from toolagent.serve.schemas import (
    BatchAnswer,
    Health,
    Models,
    PlayAnswer,
    Refusal,
    Requests,
    requests_of,
)

PAGE = Path(__file__).parent / "page"
_ABOUT = (
    "Plays problems with trained agents. Stateless: a request carries its whole problem and the "
    "tokens that are given; nothing of it is kept."
)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "Not JSON, or a Host header of another server"},
    413: {"model": Refusal, "description": "The body is too large"},
    422: {"model": Refusal, "description": "No such problem"},
}
_UNKNOWN_MODEL: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "No such model"}
}


def build_app(agents: Agents, hosts: Collection[str]) -> ASGIApp:
    """The application.

    Args:
        agents: who plays.
        hosts: the accepted names of the `Host` header, see `Guard`.
    """
    # Its own pages for the OpenAPI document load scripts from elsewhere; ours is in `page/`.
    app = FastAPI(
        title="toolagent playground",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
    )
    asks = requests_of(agents.task, keys_of(agents.task))
    fields = [*asks.problem.model_fields]
    app.add_exception_handler(RequestValidationError, functools.partial(_explain, fields))
    figures = Figures()
    _add_routes(app, agents, asks, figures)
    figures.routes = frozenset(app.openapi()["paths"])
    _add_page(app)
    return Guard(app, hosts, figures)


def _add_routes(app: FastAPI, agents: Agents, asks: Requests, figures: Figures) -> None:
    task, random = agents.task, np.random.default_rng()
    models = to_json(agents.info)
    for batcher in agents.batchers.values():
        batcher.observe = figures.batch

    async def ask(model: str, questions: list[Question]) -> list[Answer]:
        answers = await asyncio.gather(*map(agents.batchers[model].ask, questions))
        for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            with _refusals("" if question.explained else f"{problem(place)}: "):
                check_told(task, question, answer)
            figures.played(model, answer.solved)
        return answers

    async def play(asked: Any) -> Response:
        """Plays one problem, step by step."""
        model = _model(agents, asked.model)
        question = replace(_question(task, asked), explained=True)
        (answer,) = await ask(model, [question])
        return _json(play_answer_of(task, model, question, answer))

    async def play_batch(asked: Any) -> Response:
        """Plays many problems; one invalid problem refuses the whole batch."""
        model = _model(agents, asked.model)
        questions = [
            _question(task, one, f"{problem(place)}: ") for place, one in enumerate(asked.problems)
        ]
        answers = await ask(model, questions)
        results = [result_of(task, *pair) for pair in zip(questions, answers, strict=True)]
        solved = sum(answer.solved for answer in answers)
        return _json({"model": model, "solved": solved, "results": results})

    # What may be asked depends on the task, so its classes are not known before.
    for path, answer, request, model in (
        ("/api/play", play, asks.play, PlayAnswer),
        ("/api/play/batch", play_batch, asks.batch, BatchAnswer),
    ):
        answer.__annotations__["asked"] = request
        app.post(path, responses={200: {"model": model}, **_REFUSALS, **_UNKNOWN_MODEL})(answer)

    @app.get("/api/models", responses={200: {"model": Models}, 400: _REFUSALS[400]})
    async def about() -> Response:
        """The task, and the checkpoints that play it here."""
        return Response(models, media_type="application/json")

    @app.get("/api/example", responses={200: {"model": asks.example}, **_REFUSALS})
    async def example(stage: int | None = None) -> Response:
        """A problem drawn at random."""
        try:
            drawn = example_of(task, stage, random)
        except Refused as error:
            raise HTTPException(422, str(error)) from None
        return _json(drawn)

    @app.get("/api/health", responses={200: {"model": Health}, 400: _REFUSALS[400]})
    async def health() -> Response:
        """Answers while the server is up."""
        return _json({"status": "ok"})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, 400: _REFUSALS[400]})
    async def metrics() -> Response:
        """Requests, latencies and batches, for Prometheus."""
        return Response(figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    """A route for each file of the page, and for nothing else."""
    for file in sorted(PAGE.iterdir()):
        for path in (f"/{file.name}", "/") if file.name == "index.html" else (f"/{file.name}",):
            app.add_route(path, functools.partial(_file, file), include_in_schema=False)


async def _file(file: Path, _: Request) -> Response:
    return FileResponse(file)


def _json(content: dict[str, Any]) -> Response:
    return Response(to_json(content), media_type="application/json")


def _model(agents: Agents, name: str | None) -> str:
    if name is None:
        return agents.default
    if name not in agents.policies:
        raise HTTPException(404, f"no model {name!a:.60}; there is {', '.join(agents.policies)}")
    return name


def _question(task: Any, asked: Any, where: str = "") -> Question:
    with _refusals(where):
        return question_of(task, asked)


@contextlib.contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Answers what is refused with its reason."""
    try:
        yield
    except Refused as error:
        raise HTTPException(422, f"{where}{error}") from None


async def _explain(fields: list[str], _: Request, error: Exception) -> Response:
    """Answers a request of the wrong shape with its first fault, on one line, without the input."""
    assert isinstance(error, RequestValidationError)
    status, text = fault_of(error.errors()[0], fields)
    return Response(to_json({"detail": ascii(text)[1:-1][:500]}), status, None, "application/json")
