"""Requests and answers of the API, as `/openapi.json` describes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_BODY_BYTES = 64 * 1024
MAX_PROBLEMS = 256  # in one request to `/api/play/batch`
MAX_TEXT = 500  # characters of an expression; what is too long for the task is refused by it

TokenName = Annotated[str, Field(max_length=64)]  # of the task's vocabulary: `tokens`


class _Strict(BaseModel):
    """No unknown keys, and no value is converted: `"3"` and `true` are no digits."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(_Strict):
    """One problem, in the words of the server's task (`GET /api/models`)."""

    stage: int | None = Field(
        None,
        description="Without it: the stage that shows so many digits, or has so many operands.",
        ge=0,
        le=127,
    )
    digits: list[Annotated[int, Field(ge=0, le=9)]] | None = Field(
        None,
        description="For calculator and tutorial: those that the stage shows, or all five.",
        max_length=16,
    )
    expression: str | None = Field(
        None,
        description="For expression: single digits, + - * and parentheses.",
        max_length=MAX_TEXT,
    )
    given: list[TokenName] = Field(
        default_factory=list,
        description="Tokens that the program begins with; the agent goes on behind them.",
        max_length=127,
    )


class PlayRequest(Problem):
    """One problem for one agent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"digits": [3, 4, 5, 6, 7]},
                {"stage": 2, "digits": [3, 4, 5, 6, 7], "given": ["MUL", "ADD", "SUB"]},
            ]
        }
    )
    model: str | None = Field(
        None, description="A name of `GET /api/models`; default: the first.", max_length=MAX_TEXT
    )


class BatchRequest(_Strict):
    """Many problems for one agent."""

    problems: list[Problem] = Field(min_length=1, max_length=MAX_PROBLEMS)
    model: str | None = Field(
        None, description="A name of `GET /api/models`; default: the first.", max_length=MAX_TEXT
    )


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


class Result(BaseModel):
    """How an episode ended."""

    stage: int
    problem: str = Field(description="As a person reads it: '3*4+5'.")
    target: int
    program: list[TokenName]
    answered: bool = Field(description="With ANS; otherwise it ran out of actions.")
    answer: int | None = Field(description="Null: no answer, or an empty register.")
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
    digits: int | None = Field(description="How many a problem shows; null: posed by a text.")
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
    posed_by: str = Field(description="The key of a problem: 'digits' or 'expression'.")
    tokens: list[str]
    registers: list[str]
    stages: list[Stage]
    models: list[Model]


class Example(BaseModel):
    """A problem drawn at random, to be sent back."""

    stage: int
    digits: list[int] | None = None
    expression: str | None = None


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"]


class Refusal(BaseModel):
    """What was wrong, and what would be right, on one line."""

    detail: str
