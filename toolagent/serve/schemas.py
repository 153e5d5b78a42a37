"""Requests and answers of the API, as `/openapi.json` describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

from toolagent.errors import UserError
from toolagent.tasks import Task

MAX_BODY_BYTES = 64 * 1024
MAX_PROBLEMS = 256  # in one request to `/api/play/batch`
MAX_NUMBER = 2**53 - 1  # JavaScript has no larger integers
SEED = "seed"  # the key of a problem that is drawn
MAX_TEXT = 500  # characters of an expression; what is too long for the task is refused by it

TokenName = Annotated[str, Field(max_length=64)]  # of the task's vocabulary: `tokens`


class _Strict(BaseModel):
    """No unknown keys, and no value is converted: `"3"` and `true` are no digits."""

    model_config = ConfigDict(extra="forbid", strict=True)


class _Stage(_Strict):
    stage: int | None = Field(
        None,
        description="Without it: the one that the problem tells, or else the last.",
        ge=0,
        le=127,
    )


class _Model(_Strict):
    model: str | None = Field(
        None, description="A name of `GET /api/models`; default: the first.", max_length=MAX_TEXT
    )


# What poses a problem, by the key (`Task.posed_by`); each may be left out of a request.
_Number = Annotated[int, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_POSED: dict[str, tuple[Any, str]] = {
    "digits": (
        Annotated[list[Annotated[int, Field(ge=0, le=9)]], Field(max_length=16)],
        "Those that the stage shows, or all five.",
    ),
    "expression": (
        Annotated[str, Field(max_length=MAX_TEXT)],
        "Single digits, + - * and parentheses.",
    ),
    SEED: (
        Annotated[int, Field(ge=0, le=MAX_NUMBER)],
        "Draws a problem of the stage; the same number always draws the same.",
    ),
}
_GIVEN = "Tokens that the program begins with; the agent goes on behind them."
_NUMBERS = Annotated[list[_Number], Field(max_length=128)]
_TEXT = Annotated[str, Field(max_length=MAX_TEXT)]


class Requests(NamedTuple):
    """What may be asked of a task; the classes have its words for a problem as their fields."""

    problem: type[BaseModel]
    play: type[BaseModel]
    batch: type[BaseModel]
    example: type[BaseModel]


def requests_of(task: Task, keys: Sequence[str]) -> Requests:
    """The requests for a task whose problems are posed by one of these keys.

    Raises:
        UserError: a key of the task's own is that of something else.
    """
    fields: dict[str, Any] = {}
    for key in keys:
        known = key in ("stage", "given", "model") or task.posed_by == SEED
        if known or not key.isidentifier() or key.startswith("_"):
            raise UserError(
                f"task '{task.name}': posed_by is '{task.posed_by}', which can't be the key of "
                "a problem in a request; choose another name"
            )
        kind = _NUMBERS if len(task.problem_columns) > 1 else _TEXT
        kind = _Number if kind is _TEXT and task.posed_by_numbers else kind
        kind, description = _POSED.get(key, (kind, "The problem."))
        fields[key] = (kind | None, Field(None, description=description))
    one = create_model("Posed", __base__=_Stage, **fields)
    given: Any = list[Literal[task.vocabulary.actions]]
    problem = create_model(
        "Problem",
        __base__=one,
        given=(given, Field(default_factory=list, description=_GIVEN, max_length=127)),
        __doc__="One problem, in the words of the server's task (`GET /api/models`).",
    )
    play = create_model(
        "PlayRequest", __base__=(_Model, problem), __doc__="One problem for one agent."
    )
    problems: Any = Annotated[list[problem], Field(min_length=1, max_length=MAX_PROBLEMS)]
    batch = create_model(
        "BatchRequest",
        __base__=_Model,
        __doc__="Many problems for one agent.",
        problems=(problems, ...),
    )
    example = create_model(
        "Example",
        __base__=one,
        __doc__="A problem drawn at random, to be sent back.",
        stage=(int, ...),
    )
    return Requests(problem, play, batch, example)


class Step(BaseModel):
    """One action, the distribution that it was chosen from, and what it did."""

    token: TokenName
    given: bool = Field(description="Not chosen by the agent.")
    probabilities: list[float] = Field(
        description="Of all tokens, in the order of `tokens` in `GET /api/models`."
    )
    value: float = Field(description="What the agent expects of the episode, before the action.")
    registers: dict[str, int | str | None] = Field(description="After the action; null: empty.")
    reward: float
    response: list[TokenName] | None = Field(
        None, description="What the action was answered with, where the task's tools answer."
    )


class Result(BaseModel):
    """How an episode ended."""

    stage: int
    problem: str = Field(description="As a person reads it: '3*4+5'.")
    target: int
    program: list[TokenName]
    answered: bool = Field(description="Otherwise it ran out of actions.")
    answer: int | None = Field(description="Null: no answer, an empty register, or not told.")
    solved: bool = Field(description="The answer is exactly the target.")


class PlayAnswer(Result):
    """An episode, step by step."""

    model: str
    formula: str = Field(description="What the stage asks for: 'a*b+c'.")
    verdict: str = Field(description="In words, why the answer is right or wrong.")
    computes: str | None = Field(
        description="The formula that the program computes, where it alone determines one."
    )
    steps: list[Step]


class BatchAnswer(BaseModel):
    """The results in the order of the problems."""

    model: str
    solved: int
    results: list[Result]


class Stage(BaseModel):
    """A stage of the task."""

    stage: int
    formula: str
    digits: int | None = Field(
        description="How many numbers a problem shows; null: posed by a text or one number."
    )
    actions: int = Field(description="After so many without an answer the episode is over.")


class Model(BaseModel):
    """A checkpoint that is served."""

    name: str
    network: str
    parameters: int
    env_steps: int | None
    iteration: int | None
    seed: int | None
    trained_stages: list[int] | None
    accuracies: list[dict[str, object]] = Field(description="As measured when it was written.")


class Models(BaseModel):
    """The task, and the agents that play it here."""

    task: str
    posed_by: str = Field(
        description="The key of a problem, such as 'digits' or 'expression'; 'seed' where problems "
        "can only be drawn."
    )
    tells_stage: bool = Field(description="Whether a problem tells its stage.")
    example: dict[str, object] = Field(description="A problem to begin with, to be sent back.")
    tokens: list[str]
    registers: list[str]
    start: dict[str, int | str | None] = Field(
        description="The registers before the first action (of the example)."
    )
    stages: list[Stage]
    models: list[Model]


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"]


class Refusal(BaseModel):
    """What was wrong, and what would be right, on one line."""

    detail: str
