"""What a task is: a problem generator plus a machine that gives the tool tokens their meaning.

Machines are pure and batched: `step` maps the registers of B episodes and B actions to new
registers. There is one implementation per machine; the single and the vector environment, the
batched rollout, the certification and the oracle are all views of it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from toolagent.tasks.columns import Columns
from toolagent.tasks.fields import Field, fields_of
from toolagent.vocabulary import Interface, Vocabulary

ALL = "all"  # the split of a task that has one only


@dataclass
class Problems(Columns):
    """B problems. Tasks add the columns that their machine needs."""

    stage: np.ndarray  # (B,) int8
    context: np.ndarray  # (B, context_length) int8: what the agent reads


@dataclass
class Registers(Columns):
    """The machine's registers in B episodes. Tasks add their own."""

    steps: np.ndarray  # (B,) int8: actions taken so far


@dataclass(frozen=True)
class Transition:
    """What one action did in each of B episodes."""

    registers: Any  # the task's Registers after the action
    rewards: np.ndarray  # (B,) float64
    terminated: np.ndarray  # (B,) bool: answered
    truncated: np.ndarray  # (B,) bool: out of actions
    solved: np.ndarray  # (B,) bool: answered, and the answer is exactly right
    # (B, response_length) integers: the tokens that the agent observes at its next step, and only
    # there; None where tools answer nothing
    response: np.ndarray | None = None

    @property
    def done(self) -> np.ndarray:
        """(B,) bool: the episode is over, answered or not."""
        return self.terminated | self.truncated


@dataclass
class Lies(Columns):
    """An answer in each of B episodes, and what it would be as a lie."""

    step: np.ndarray  # (B,) int64: the action that is answered, -1 where there is nothing to lie of
    response: np.ndarray  # (B, response_length) int8: the tokens of the lie
    # (B,) int64: the right answer to the problem if the lie is true and all else as it is
    answer: np.ndarray


class Task(abc.ABC):
    """Problem generator and machine. Stateless: everything travels in the columns, and several
    threads may call it at once.

    A subclass needs `name`, `vocabulary`, `num_stages`, `context_length`, `max_actions`, and the
    methods `sample`, `start`, `step` and `target`. All else has defaults: what is missing is not
    listed, posed or shown.
    """

    # What training needs --------------------------------------------------------------------

    name: ClassVar[str]  # lower case, '_' between words
    env_name: ClassVar[str] = ""  # in the environment's id: 'ToolCall'; '': made of `name`
    vocabulary: ClassVar[Vocabulary]
    first_stage: ClassVar[int] = 0
    num_stages: ClassVar[int]
    context_length: ClassVar[int]
    max_actions: ClassVar[int]  # at most 127; no episode is longer, some may be truncated earlier
    response_length: ClassVar[int] = 0  # tokens that an action is answered with
    # The token that answers, alone, an action that is refused; None: no action is.
    refusal: ClassVar[str | None] = None
    # Whether the vocabulary's `answer` ends the episode. If not, it begins what does: the agent
    # writes its answer token by token; `start` must be no action then, and `accumulator` have a
    # value only in an episode that was answered.
    answer_ends: ClassVar[bool] = True
    # Kinds of problems that are sampled and measured apart; training draws from the first only.
    splits: ClassVar[tuple[str, ...]] = (ALL,)

    # What people are shown ------------------------------------------------------------------

    formulas: ClassVar[tuple[str, ...]] = ()  # what each stage asks for: 'a*b+c'
    judgements: ClassVar[tuple[str, ...]] = ()  # the names of what `judge` tells
    # Whether what is rewarded is the target; else some rewards contradict `solved`.
    rewards_target: ClassVar[bool] = True
    # One program, played without reading, may solve a whole stage (`oracle.shortest_programs`).
    one_plan_a_stage: ClassVar[bool] = False
    # The arguments of `pose`, which are the flags of `explain` and the keys of requests, too.
    posed_by: ClassVar[tuple[str, ...]] = ("problem",)
    # What a file of problems has, besides `stage`: a column for each of `posed_by`. Where that is
    # one list of numbers, it may be a column for each number.
    problem_columns: ClassVar[tuple[str, ...]] = ("problem",)
    problem_tells_stage: ClassVar[bool] = False  # so `pose` needs no stage
    text_registers: ClassVar[tuple[str, ...]] = ()  # of `show`, those that hold text
    tools: ClassVar[tuple[str, ...]] = ()  # actions whose use is counted; none: every action

    @property
    def interface(self) -> Interface:
        """What a network has to know of the task."""
        return Interface(
            self.vocabulary,
            self.stages.stop,
            self.context_length,
            self.max_actions,
            self.response_length,
        )

    @property
    def stages(self) -> range:
        """The stages' numbers, in the order of a curriculum."""
        return range(self.first_stage, self.first_stage + self.num_stages)

    def formula(self, stage: int) -> str:
        """What the stage asks for: 'a*b+c'; '' where the task has no formulas."""
        return self.formulas[stage - self.first_stage] if self.formulas else ""

    # Problems -----------------------------------------------------------------------------

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, stage: np.ndarray, split: str = ...) -> Any:
        """Draws one problem of the split for each entry of `stage`, (B,) integers.

        Args:
            rng: the stream to draw from.
            stage: (B,) stages.
            split: one of `splits`; by default the first, which training draws from.

        Raises:
            ValueError: a stage has no problems of that split, see `splits_of`.
        """

    def splits_of(self, stage: int) -> tuple[str, ...]:
        """The splits that have problems in this stage."""
        self.check_stage(stage)
        return self.splits

    def split_of(self, problems: Any) -> np.ndarray:
        """(B,) integers: the index in `splits` of the one that a problem belongs to."""
        return np.zeros(len(problems), np.int8)

    def example(self, stage: int | None = None) -> Any:
        """One problem to show, always the same: of the stage, or without one of the task.

        Here: a random one, of the last stage by default.
        """
        stage = self.stages[-1] if stage is None else stage
        return self.sample(np.random.default_rng(0), self.check_stage([stage]))

    def shown_columns(self, stage: int) -> tuple[str, ...]:
        """Those of `problem_columns` that the stage shows; the others count for nothing in it."""
        self.check_stage(stage)
        return self.problem_columns

    @property
    def fields(self) -> tuple[Field, ...]:
        """What problems are posed by, and of what kind each value is."""
        return fields_of(type(self))

    @property
    def can_be_posed(self) -> bool:
        """Whether the task defines `pose`."""
        return self.defines("pose")

    def defines(self, member: str) -> bool:
        """Whether the task has a method of its own where `Task` has a default."""
        return getattr(type(self), member) is not getattr(Task, member)

    def pose(self, stage: np.ndarray | None, **given: Any) -> Any:
        """The given problems, named as in `reset(options=...)` and in problem files.

        Args:
            stage: (B,) or one for all; None where the problems tell it (`problem_tells_stage`).
            given: the problems.

        Raises:
            ValueError: a value is out of range or of the wrong shape, or a problem is not of the
                stage asked for; or the task does not define `pose`.
        """
        raise ValueError(f"task '{self.name}' can't be given problems: it defines no `pose`")

    def num_problems(self, stage: int) -> int | None:
        """How many problems the stage has; None if they are too many to be listed."""
        self.check_stage(stage)
        return None

    def problems(self, stage: int, start: int, stop: int) -> Any:
        """Problems `start`..`stop` of the stage, in a fixed order that has each exactly once.

        Only where `num_problems` is not None.
        """
        raise NotImplementedError(f"task '{self.name}' has num_problems, so it needs `problems`")

    def describe(self, problems: Any, row: int) -> str:
        """One problem as a person reads it: its formula, if stages have one, the same with its
        numbers, and the right answer: 'a*b+c = 3*4+5 = 17'.

        Here: the tokens of its context and the right answer.
        """
        context = problems.context[row]
        text = self.vocabulary.text(context[context != self.vocabulary.pad_token]) or "-"
        target = self.target(problems.take(np.array([row])))[0]
        return f"{text.replace(' = ', '=')} = {target}"

    def read(self, context: np.ndarray) -> dict[str, Any]:
        """What `pose` needs besides the stage, as far as (B, L) contexts show it.

        What is shown in no context is told by `unseen`. Here: the contexts themselves, which are
        recorded in place of what `pose` needs.
        """
        return {"context": context}

    def unseen(self, problems: Any) -> dict[str, np.ndarray]:
        """What `pose` needs and no context shows, such as what tools are asked for: arrays with B
        rows, by name. The context of a problem does not depend on it. Here: nothing."""
        return {}

    def depth(self, problems: Any) -> np.ndarray | None:
        """(B,) integers: how deep each problem is nested, for figures by depth. Here: None, for
        problems that are not nested."""
        return None

    def posing(self, problems: Any) -> dict[str, Any]:
        """What `pose` needs to make these problems again, besides the stage."""
        return self.read(problems.context) | self.unseen(problems)

    # Machine ------------------------------------------------------------------------------

    @abc.abstractmethod
    def start(self, problems: Any) -> Any:
        """The registers at the beginning of B episodes."""

    @abc.abstractmethod
    def step(self, problems: Any, registers: Any, actions: np.ndarray) -> Transition:
        """One action in each of B episodes that are not over; changes none of its arguments.

        Args:
            actions: (B,) integers; checked by the caller (`Vocabulary.check_actions`).
        """

    @abc.abstractmethod
    def target(self, problems: Any) -> np.ndarray:
        """(B,) int64: the right answers."""

    def accumulator(self, registers: Any) -> tuple[np.ndarray, np.ndarray]:
        """(B,) int64 values the machine would answer with, and (B,) bool where there is one.

        For people only. Here: none.
        """
        return np.zeros(len(registers), np.int64), np.zeros(len(registers), bool)

    def show(self, registers: Any, row: int) -> dict[str, int | str | None]:
        """One episode's registers by name, None where empty: for people, not for the agent."""
        return {}

    # `status` is below it, at most 128; 0 is every episode's first.
    num_statuses: ClassVar[int] = 128

    def status(self, registers: Any) -> np.ndarray:
        """(B,) int8: which registers are filled and how far the machine has read, not with what.

        An action that leaves the status as it was counts as having no effect. For exploration
        only; the agent never observes it. Here: the actions taken, so that all have an effect.
        """
        return registers.steps

    def practice(self, rng: np.random.Generator, stage: np.ndarray) -> Any:
        """Problems to learn from, one for each of (B,) stages, of those that training may see.

        They may be drawn otherwise than `sample` draws: such that a wrong plan is seldom right by
        coincidence. Here: as `sample` does.
        """
        return self.sample(rng, stage)

    def variants(self, problems: Any, rng: np.random.Generator) -> Any:
        """Problems to practise that the same plan solves, with other numbers in it.

        Here: any of the same stage, for tasks in which one program solves a stage.
        """
        return self.practice(rng, problems.stage)

    def rewritten(self, problems: Any, rng: np.random.Generator) -> Any:
        """The same problems, some with another context that means the same: a plan that is right
        before is right behind.

        Here: as they are, for tasks whose contexts say a thing in one way only.
        """
        return problems

    def siblings(self, problems: Any, rng: np.random.Generator) -> Any:
        """Problems to practise with the same contexts and stages, with what no context shows drawn
        anew.

        Here: the problems themselves, for tasks whose contexts show everything.
        """
        return problems

    def action_limit(self, stage: np.ndarray) -> np.ndarray:
        """(B,) actions after which an episode of that stage is truncated."""
        return np.full(len(stage), self.max_actions)

    def judge(
        self, problems: Any, actions: np.ndarray, lengths: np.ndarray
    ) -> dict[str, np.ndarray]:
        """What else is told of finished programs besides `solved`: (B,) bool by name.

        For evaluation only; never rewarded or learned from.

        Args:
            problems: (B,) of this task.
            actions: (B, T) integers.
            lengths: (B,) the actions that count.
        """
        return {}

    def plan(self, problems: Any, row: int) -> tuple[int, ...] | None:
        """The shortest program that solves this problem and not by coincidence, to its answer.

        For display only; never rewarded or learned from.

        Returns:
            One of them if there are several; None if there is none.
        """
        return None

    def continuation(
        self, problems: Any, row: int, tokens: Sequence[int]
    ) -> tuple[int, ...] | None:
        """The shortest way to go on after some tokens so that the whole is such a program (`plan`).

        Args:
            problems: of this task.
            row: the problem.
            tokens: what is written already, no answer token among it.

        Returns:
            The tokens to come, the answer token included; None if nothing within the limit does it.
        """
        return None

    def terms(self, problems: Any, row: int) -> dict[str, int]:
        """Parts of a problem by name, which a wrong answer may equal: {'a*b': 12}."""
        return {}

    def computes(self, actions: Sequence[int]) -> str | None:
        """The formula that a program answers with, where it alone determines one: '3*4+5'."""
        return None

    def lies(
        self, problems: Any, actions: np.ndarray, lengths: np.ndarray, response: np.ndarray
    ) -> Lies | None:
        """How finished episodes could have been lied to: off by one, in the first answer that is
        calculated and not looked up.

        For explanation only. Here: in no way.

        Args:
            problems: (B,) of this task.
            actions: (B, T) integers.
            lengths: (B,) the actions that count.
            response: (B, T, response_length) what each action was answered with.
        """
        return None

    # For exploration only; the agent never observes any of it.

    def kinds(self, context: np.ndarray) -> np.ndarray:
        """(B,) int64: equal for problems, given by (B, L) contexts, that the same plan solves.

        Here: one kind.
        """
        return np.zeros(len(context), np.int64)

    def dataflow(
        self, context: np.ndarray, actions: np.ndarray, lengths: np.ndarray, response: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What finished programs did, and which of their actions it needed.

        Args:
            context: (B, L) of the problems.
            actions: (B, T).
            lengths: (B,) the actions that count.
            response: (B, T, R).

        Returns:
            (B,) int64: equal for programs that compute the same from the same places of a problem;
            and (B, T) bool: without the other actions the program does the same.

        Raises:
            NotImplementedError: here; only exploration by copying asks.
        """
        raise NotImplementedError(f"task '{self.name}' does not define `dataflow`")

    # What is observed -----------------------------------------------------------------------

    @property
    def refusal_token(self) -> int | None:
        """The number of `refusal`."""
        return None if self.refusal is None else self.vocabulary.token(self.refusal)

    def no_response(self, size: int) -> np.ndarray | None:
        """(size, response_length) int8: what is observed where no action was answered; None where
        tools answer nothing.
        """
        if not self.response_length:
            return None
        return np.full((size, self.response_length), self.vocabulary.pad_token, np.int8)

    def response_of(self, transition: Transition) -> np.ndarray | None:
        """(B, response_length) int8, a copy: what the actions of a transition were answered with;
        None where tools answer nothing.
        """
        if not self.response_length:
            return None
        return np.array(transition.response, np.int8)

    # What both environments check -----------------------------------------------------------

    def check_stage(self, stage: Any) -> np.ndarray:
        """The stage(s) as int8.

        Raises:
            ValueError: not an integer, or not a stage of this task.
        """
        array = np.asarray(stage)
        first, last = self.stages[0], self.stages[-1]
        if array.dtype.kind not in "iu" or ((array < first) | (array > last)).any():
            raise ValueError(
                f"stage {stage} is not in task '{self.name}'; its stages are {first}..{last}"
            )
        return array.astype(np.int8)
