"""Requests and answers of the API, as `/openapi.json` describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

from toolagent.errors import UserError
from toolagent.tasks import Task
from toolagent.tasks.fields import DIGITS, NUMBER, NUMBERS, TEXT, Kind

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


class _Answer(_Strict):
    step: int = Field(description="Whose action was answered, from 1.", ge=1, le=127)


# What poses a problem, by its kind; each may be left out of a request.
_Number = Annotated[int, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_Digit = Annotated[int, Field(ge=0, le=9)]
_KINDS: dict[str, tuple[Any, str]] = {
    TEXT: (Annotated[str, Field(max_length=MAX_TEXT)], "A text such as {example!r}."),
    NUMBER: (_Number, "A number such as {example}."),
    NUMBERS: (Annotated[list[_Number], Field(max_length=128)], "{length} numbers."),
    DIGITS: (
        Annotated[list[_Digit], Field(max_length=16)],
        "Those that the stage shows, or all {length}.",
    ),
}
_SEED: tuple[Any, str] = (
    Annotated[int, Field(ge=0, le=MAX_NUMBER)],
    "Draws a problem of the stage; the same number always draws the same.",
)
_GIVEN = "Tokens that the program begins with; the agent goes on behind them."
_ANSWERS = (
    "What the agent is told in place of what tools answer. The tools themselves are not changed, "
    "nor is the right answer."
)


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
    posed: dict[str, tuple[Any, str]] = {}
    told = task.posing(task.example()) if task.can_be_posed else {}
    for field in task.fields if task.can_be_posed else ():
        known = field.name in ("stage", "given", "answers", "model", SEED)
        if known or not field.name.isidentifier() or field.name.startswith("_"):
            raise UserError(
                f"task '{task.name}': posed_by has '{field.name}', which can't be the key of "
                "a problem in a request; choose another name"
            )
        kind, description = _KINDS[field.kind]
        example = told[field.name][0] if field.name in told else ""
        posed[field.name] = kind, description.format(example=example, length=field.length)
    if SEED in keys:
        posed[SEED] = _SEED
    fields: dict[str, Any] = {
        key: (kind | None, Field(None, description=text)) for key, (kind, text) in posed.items()
    }
    one = create_model("Posed", __base__=_Stage, **fields)
    given: Any = list[Literal[task.vocabulary.actions]]
    more: dict[str, Any] = {}
    if task.response_length:
        tokens: Any = list[Literal[task.vocabulary.names]]
        text = f"In order, at most {task.response_length}; none: the agent sees no answer."
        answer = create_model(
            "Answer",
            __base__=_Answer,
            __doc__="What the agent is told at one step.",
            tokens=(tokens, Field(description=text, max_length=127)),
        )
        answers: Any = list[answer]
        more["answers"] = (
            answers,
            Field(default_factory=list, description=_ANSWERS, max_length=127),
        )
    problem = create_model(
        "Problem",
        __base__=one,
        given=(given, Field(default_factory=list, description=_GIVEN, max_length=127)),
        **more,
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


class Source(BaseModel):
    """A place that the agent looks at."""

    answer: int | None = Field(description="The number of an answer, from 1; null: the problem.")
    place: int = Field(description="Of the token in that answer or problem, from 0.")
    tokens: list[TokenName] = Field(description="That answer; of the problem, the one token.")
    weight: float


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
        None, description="What the agent was told of the answer, where the task's tools answer."
    )
    replaced: list[TokenName] | None = Field(
        None, description="What the tool answered, where the request had the agent told else."
    )
    copied_from: Source | None = Field(
        None, description="Where the token was copied from, by the attention's weights."
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


class ReadToken(BaseModel):
    """What reading one token of the problem did with the network's stack of states."""

    token: TokenName
    push: float = Field(description="How much, as `pop` and `keep`; together 1.")
    pop: float
    keep: float
    depth: int = Field(description="Entries behind the token, if the largest of the three decides.")
    written: list[TokenName] = Field(description="What is written from it.")
    steps: list[int] = Field(description="Where that stands in the program, from 1.")


class PlayAnswer(Result):
    """An episode, step by step."""

    model: str
    formula: str = Field(description="What the stage asks for: 'a*b+c'.")
    verdict: str = Field(description="In words, why the answer is right or wrong.")
    computes: str | None = Field(
        description="The formula that the program computes, where it alone determines one."
    )
    steps: list[Step]
    reading: list[ReadToken] | None = Field(
        description="The problem's tokens; null: the network has no stack of states."
    )


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


class PosedBy(BaseModel):
    """A key of a problem, such as 'digits' or 'expression'."""

    name: str
    kind: Kind
    length: int | None = Field(description="Of a list of numbers: how many there are.")


class Models(BaseModel):
    """The task, and the agents that play it here."""

    task: str
    posed_by: list[PosedBy] = Field(
        description="What problems are posed by; 'seed' where they can only be drawn."
    )
    tells_stage: bool = Field(description="Whether a problem tells its stage.")
    example: dict[str, object] = Field(description="A problem to begin with, to be sent back.")
    tokens: list[str]
    observed: list[str] = Field(description="Further tokens, which are only read.")
    response_length: int = Field(description="Tokens of an answer at most; 0: tools don't answer.")
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
