"""The task `expression`: its problems, its machine, and what is told of programs.

Beside the batched code stand a scalar stack machine, Python's own arithmetic and polynomials that
are multiplied out (`reference_machines`).
"""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_machines import (
    StackReference,
    is_valid,
    operands_of,
    polynomial_of,
    skeleton_of,
    value_of,
)
from test_infix import expressions

from toolagent.tasks.algebra import normal_form
from toolagent.tasks.expression import ExpressionTask
from toolagent.tasks.infix import parse, texts_of
from toolagent.tasks.skeletons import num_skeletons
from toolagent.tasks.tokens import ADD, ANS, CTX, EOS, MUL, RCL, STO, SUB, VOCABULARY

TASK = ExpressionTask()
STAGES = range(1, 9)
SPLITS = [(stage, split) for stage in STAGES for split in TASK.splits_of(stage)]


def pose(*texts):
    return TASK.pose(None, expression=list(texts))


def program(text):
    """The tokens of '3 4 ADD ANS'."""
    return [VOCABULARY.names.index(name) for name in text.split()]


def padded(programs):
    """(B, T) actions and (B,) lengths."""
    lengths = np.array([len(tokens) for tokens in programs])
    actions = np.full((len(programs), max(lengths.max(), 1)), EOS)
    for row, tokens in enumerate(programs):
        actions[row, : len(tokens)] = tokens
    return actions, lengths


# Machine ----------------------------------------------------------------------------------------


def assert_like_the_reference(texts, programs):
    """Runs B episodes of both machines side by side, until all are over or out of tokens."""
    problems = pose(*texts)
    registers = TASK.start(problems)
    references = [StackReference(text) for text in texts]
    assert TASK.target(problems).tolist() == [reference.target for reference in references]
    live = np.arange(len(texts))
    for step in itertools.count():
        going = np.array([len(programs[row]) > step for row in live], bool)
        live, problems, registers = live[going], problems.take(going), registers.take(going)
        if not len(live):
            break
        actions = np.array([programs[row][step] for row in live])
        transition = TASK.step(problems, registers, actions)
        value, filled = TASK.accumulator(transition.registers)
        status = TASK.status(transition.registers)
        for row, episode in enumerate(live):
            reference = references[episode]
            reward, terminated, truncated, solved = reference.step(int(actions[row]))
            where = (texts[episode], programs[episode], step)
            assert transition.rewards[row] == reward, where
            assert transition.terminated[row] == terminated, where
            assert transition.truncated[row] == truncated, where
            assert transition.solved[row] == solved, where
            assert (int(value[row]) if filled[row] else None) == reference.acc, where
            assert transition.registers.steps[row] == reference.steps == step + 1, where
            assert TASK.show(transition.registers, row) == {
                "stack": " ".join(map(str, reference.stack)) or None,
                "mem": reference.mem[0] if reference.mem else None,
            }, where
            assert status[row] == 2 * len(reference.stack) + len(reference.mem), where
            # What is empty is 0, so that equal states are equal columns.
            assert transition.registers.stack[row].tolist() == reference.stack + [0] * (
                16 - len(reference.stack)
            ), where
            assert transition.registers.mem[row] == sum(reference.mem), where
        going = ~transition.done
        live, problems = live[going], problems.take(going)
        registers = transition.registers.take(going)
    return references


TOKEN = st.sampled_from([*range(18), *range(10), *[MUL, ADD, SUB] * 6, *[STO, RCL] * 3])


@settings(max_examples=150, deadline=None)
@given(
    episodes=st.lists(
        st.tuples(expressions(), st.lists(TOKEN, min_size=17, max_size=17)), min_size=1, max_size=6
    )
)
def test_the_batched_machine_does_what_the_scalar_one_does(episodes):
    texts, programs = zip(*episodes, strict=True)
    texts = [text.replace(" ", "") if len(text) > 29 else text for text in texts]
    assert_like_the_reference(texts, programs)


@pytest.mark.parametrize("weight_of_digits", [1, 8])
def test_the_same_on_thousands_of_random_programs(weight_of_digits):
    """Eight times as many digits fill the stack: its end is reached, nothing is written there."""
    rng = np.random.default_rng(1)
    size = 800
    weights = np.array([weight_of_digits] * 10 + [1, 5, 5, 5, 0.2, 3, 3, 1])
    programs = rng.choice(18, (size, 17), p=weights / weights.sum())
    texts = TASK.read(TASK.sample(rng, np.full(size, 8)).context)["expression"].tolist()
    references = assert_like_the_reference(texts, programs.tolist())
    if weight_of_digits > 1:
        assert max(len(reference.stack) for reference in references) >= 14


def run(text, tokens):
    """Each step's (stack, mem, reward, terminated, truncated), of one episode."""
    problems, steps = pose(text), []
    registers = TASK.start(problems)
    for token in program(tokens):
        transition = TASK.step(problems, registers, np.array([token]))
        registers = transition.registers
        shown = TASK.show(registers, 0)
        ends = (bool(transition.terminated[0]), bool(transition.truncated[0]))
        steps.append((shown["stack"], shown["mem"], float(transition.rewards[0]), *ends))
    return steps


def test_one_episode_as_a_person_would_check_it():
    assert run("(3+4)*2-5", "3 4 ADD 2 MUL 5 SUB ANS") == [
        ("3", None, 0.0, False, False),
        ("3 4", None, 0.0, False, False),
        ("7", None, 0.0, False, False),
        ("7 2", None, 0.0, False, False),
        ("14", None, 0.0, False, False),
        ("14 5", None, 0.0, False, False),
        ("9", None, 0.0, False, False),
        ("9", None, 1.0, True, False),
    ]


def test_what_is_stored_is_popped_and_what_is_recalled_is_gone():
    stacks = [step[:2] for step in run("1+2+3+4+5", "5 STO RCL RCL 3 STO 4 STO RCL RCL")]
    assert stacks == [
        ("5", None),
        (None, 5),
        ("5", None),
        ("5", None),  # nothing left to recall
        ("5 3", None),
        ("5", 3),
        ("5 4", 3),
        ("5", 4),  # what was stored before is lost
        ("5 4", None),
        ("5 4", None),
    ]


@pytest.mark.parametrize("tokens", ["MUL", "ADD", "SUB", "STO", "RCL", "CTX", "EOS"])
def test_with_too_little_a_token_does_nothing_but_cost_a_step(tokens):
    assert run("1+2", f"{tokens} {tokens}") == [(None, None, 0.0, False, False)] * 2
    if tokens in ("MUL", "ADD", "SUB", "RCL", "CTX", "EOS"):
        assert run("1+2", f"4 {tokens}")[1] == ("4", None, 0.0, False, False)


def test_the_stack_holds_16_entries():
    text = "1+1+1+1+1+1+1+1"
    full = " ".join("1" * 16)
    steps = run(text, f"{full} 2")
    assert steps[15][0] == steps[16][0] == full
    assert steps[16][4]  # out of actions: no 17th entry could ever be used
    # mem has no room either, and keeps what it has. (By hand: no episode is long enough.)
    problems = pose(text)
    registers = TASK.start(problems)
    for token in [7, STO, *[1] * 16, RCL, RCL]:
        registers = TASK.step(problems, registers, np.array([token])).registers
    assert TASK.show(registers, 0) == {"stack": full, "mem": 7}
    registers = TASK.step(problems, registers, np.array([ADD])).registers
    registers = TASK.step(problems, registers, np.array([RCL])).registers
    assert TASK.show(registers, 0) == {"stack": " ".join("1" * 14) + " 2 7", "mem": None}


@pytest.mark.parametrize("stage", STAGES)
def test_after_2k_plus_1_actions_an_episode_is_over(stage):
    text = "+".join("1" * stage)
    steps = run(text, " ".join(["CTX"] * (2 * stage + 1)))
    assert [step[2:] for step in steps] == [(0.0, False, False)] * (2 * stage) + [
        (0.0, False, True)
    ]
    # The last of them may still be an answer.
    plan = " ".join("1" * stage + "+" * (stage - 1)).replace("+", "ADD")
    assert run(text, f"CTX {plan} ANS")[-1][2:] == (1.0, True, False)
    assert TASK.max_actions == 17


def test_an_answer_from_an_empty_stack_is_wrong_even_where_0_is_right():
    assert run("0", "ANS")[-1] == (None, None, 0.0, True, False)
    assert run("0", "0 STO ANS")[-1] == (None, 0, 0.0, True, False)
    assert run("0", "0 ANS")[-1][2] == 1.0


# Problems ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "split"), SPLITS)
def test_what_is_drawn_is_what_its_text_says(stage, split):
    problems = TASK.sample(np.random.default_rng(stage), np.full(400, stage), split)
    texts = TASK.read(problems.context)["expression"].tolist()
    assert problems.target.tolist() == [value_of(text) for text in texts]
    assert {len(operands_of(text)) for text in texts} == {stage} == set(problems.stage.tolist())
    assert problems.context.shape == (400, 30) and problems.context.dtype == np.int8
    for text, context in zip(texts, problems.context.tolist(), strict=True):
        assert context[len(text) :] == [CTX] + [EOS] * (29 - len(text))
    assert (problems.held_out == (split == "held_out")).all()
    assert np.array_equal(TASK.split_of(problems), problems.held_out)
    # Posed again from its text, each is the same problem in every column.
    again = TASK.pose(None, **TASK.read(problems.context))
    for (name, column), (_, other) in zip(problems.columns(), again.columns(), strict=True):
        assert np.array_equal(column, other) and column.dtype == other.dtype, name
    assert TASK.describe(problems, 7) == f"{texts[7]} = {value_of(texts[7])}"


def test_stages_may_be_mixed_and_keep_their_rows():
    stages = np.random.default_rng(0).integers(1, 9, 500).astype(np.int8)
    problems = TASK.sample(np.random.default_rng(1), stages)
    assert np.array_equal(problems.stage, stages)
    texts = texts_of(problems.context).tolist()
    assert [len(operands_of(text)) for text in texts] == stages.tolist()
    assert problems.target.tolist() == [value_of(text) for text in texts]


def test_the_same_stream_gives_the_same_problems():
    first, second, other = (
        TASK.sample(np.random.default_rng(seed), np.full(50, 5)).context for seed in (7, 7, 8)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("stage", "split", "skeletons"),
    [
        (1, "seen", 1),
        (2, "seen", 3),
        (3, "seen", 18),
        (4, "seen", 109),
        (4, "held_out", 26),
        (5, "seen", 902),
        (5, "held_out", 232),
    ],
)
def test_every_skeleton_is_drawn_with_equal_chance(stage, split, skeletons):
    size = 100 * skeletons
    problems = TASK.sample(np.random.default_rng(3), np.full(size, stage), split)
    skeleton = {}  # of each text with its digits blanked: there are not many
    counts = Counter()
    for text in texts_of(np.where(problems.context < 10, 0, problems.context)).tolist():
        if text not in skeleton:
            skeleton[text] = skeleton_of(text)
        counts[skeleton[text]] += 1
    assert len(counts) == skeletons
    # Chi-square: mean n-1, variance 2(n-1); 4 standard deviations.
    statistic = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert statistic <= skeletons - 1 + 4 * np.sqrt(2 * (skeletons - 1))


def test_digits_are_even_and_independent_of_the_skeleton():
    problems = TASK.sample(np.random.default_rng(4), np.full(20_000, 3))
    digits = problems.context[problems.context < 10].reshape(-1, 3)
    for place in digits.T:
        # 5 standard deviations of a binomial count.
        assert np.abs(np.bincount(place, minlength=10) - 2000).max() < 5 * np.sqrt(1800)
    for one, other in ((0, 1), (1, 2), (0, 2)):
        pairs = np.bincount(digits[:, one] * 10 + digits[:, other], minlength=100)
        assert np.abs(pairs - 200).max() < 5 * np.sqrt(200)


@pytest.mark.full
def test_a_fifth_may_have_parentheses_that_change_nothing():
    problems = TASK.sample(np.random.default_rng(5), np.full(3000, 4))
    spare = 0
    for text in texts_of(problems.context).tolist():
        expression = parse(text, 8, 29)
        spare += len(text) > len(TASK.computes([*expression.postfix, ANS]) or "")
    # Each of three pairs, where it is not needed anyway, is written with chance a half.
    assert 0.12 < spare / 3000 < 0.2


def test_training_never_draws_what_is_held_out():
    rng = np.random.default_rng(6)
    for stage in STAGES:
        problems = TASK.sample(rng, np.full(5000, stage))
        assert not problems.held_out.any()
        assert not TASK.pose(None, **TASK.read(problems.context[:300])).held_out.any()
        if "held_out" in TASK.splits_of(stage):
            assert TASK.sample(rng, np.full(100, stage), "held_out").held_out.all()


def test_what_is_held_out_stays_so_with_other_digits_and_spare_parentheses():
    held_out = ["1*(2*3*4)", "1*((2*3)*4)", "(0*(9*9*9))", "1 * (2 * 3 * 4)"]
    assert pose(*held_out).held_out.tolist() == [True] * 4
    seen = ["1*2*3*4", "(1*2)*(3*4)", "1*(2*3)", "1*(2*3*4)*5"]
    assert not pose(*seen).held_out.any()


def test_the_splits_of_each_stage():
    assert [TASK.splits_of(stage) for stage in STAGES] == [("seen",)] * 3 + [
        ("seen", "held_out")
    ] * 5
    with pytest.raises(ValueError, match="no problems of stage 3 are held out"):
        TASK.sample(np.random.default_rng(0), np.array([4, 3]), "held_out")
    with pytest.raises(ValueError, match="no split 'test'; the splits are seen, held_out"):
        TASK.sample(np.random.default_rng(0), np.array([4]), "test")


@pytest.mark.parametrize(("stage", "total"), [(1, 10), (2, 300), (3, 18_000)])
def test_the_enumeration_holds_each_problem_exactly_once(stage, total):
    assert TASK.num_problems(stage) == total == num_skeletons(stage) * 10**stage
    seen = []
    for start in range(0, total, 777):  # ends in a chunk that is not full
        problems = TASK.problems(stage, start, start + 777)
        seen += texts_of(problems.context).tolist()
        assert (problems.stage == stage).all() and not problems.held_out.any()
        assert problems.target.tolist() == [value_of(text) for text in seen[start:]]
    assert len(seen) == len(set(seen)) == total
    blank = str.maketrans("123456789", "0" * 9)
    skeletons = Counter(text.translate(blank) for text in seen)
    assert set(skeletons.values()) == {10**stage}
    assert len({skeleton_of(text) for text in skeletons}) == len(skeletons)
    # Numbers as they come out of columns are as good.
    assert len(TASK.problems(np.int8(stage), np.int64(0), np.int64(5))) == 5


@pytest.mark.parametrize("stage", range(4, 9))
def test_longer_ones_are_too_many_to_be_listed(stage):
    assert TASK.num_problems(stage) is None
    with pytest.raises(ValueError, match="too many to be listed"):
        TASK.problems(stage, 0, 1)


@pytest.mark.parametrize("texts", ["(3+4)*2", ["(3+4)*2"], ("(3+4)*2",), np.array(["(3+4)*2"])])
@pytest.mark.parametrize("stage", [None, 3, [3], np.array([3], np.int8)])
def test_a_problem_is_posed_by_its_text(texts, stage):
    problems = TASK.pose(stage, expression=texts)
    assert (problems.stage.tolist(), problems.target.tolist()) == ([3], [14])


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        (2, {"expression": "(3+4)*2"}, r"\(3\+4\)\*2 is of stage 3, .*, not of stage 2"),
        ([1, 2], {"expression": ["7", "3"]}, "3 is of stage 1, its number of operands, not of st"),
        ([1, 1, 1], {"expression": ["7", "3"]}, "3 stages for 2 expressions"),
        (0, {"expression": "7"}, r"stages are 1\.\.8"),
        (None, {"expression": 7}, "is a text such as .*, not 7"),
        (None, {"expression": ["7", "7+"]}, r"'7\+': expected a digit"),
        (None, {"digits": [1, 2]}, r"posed by 'expression', a text .*, not by 'digits'"),
        (None, {"expression": "7", "digits": [1]}, "not by 'digits'"),
    ],
)
def test_a_problem_that_cannot_be_posed_is_refused(stage, given, message):
    with pytest.raises(ValueError, match=message):
        TASK.pose(stage, **given)


# Judging ----------------------------------------------------------------------------------------


def judge(text, *programs):
    actions, lengths = padded(programs)
    return TASK.judge(pose(*[text] * len(programs)), actions, lengths)


JUDGED = [
    ("(3+4)*2", "3 4 ADD 2 MUL ANS", True, True),
    ("(3+4)*2", "2 3 4 ADD MUL ANS", True, True),
    ("(3+4)*2", "4 3 ADD 2 MUL ANS", True, True),
    ("(3+4)*2", "7 2 MUL ANS", False, False),  # right, but 7 is computed nowhere
    ("(3+4)*2", "3 2 MUL 4 2 MUL ADD ANS", False, False),  # two places for one 2
    ("(3+4)*2", "3 4 ADD CTX 2 MUL ANS", True, False),
    ("(3+4)*2", "9 3 4 ADD 2 MUL ANS", True, False),  # something below counts for nothing
    ("(3+4)*2", "3 4 ADD 2 MUL", False, False),  # never answered
    ("(3+4)*2", "ANS", False, False),
    ("0*(1*(2+9))", "0 ANS", False, False),
    ("0*(1*(2+9))", "0 1 2 9 ADD MUL MUL ANS", True, True),
    ("2+2", "2 2 MUL ANS", False, False),
    ("2+2", "2 2 MUL ANS 2 2 ADD ANS", False, False),  # it was over
    ("2+2", "2 2 ADD ANS", True, True),
    ("2*2", "2 2 ADD ANS", False, False),
    ("8-3-2", "8 3 SUB 2 SUB ANS", True, True),
    ("8-3-2", "8 3 2 ADD SUB ANS", True, True),
    ("8-3-2", "8 2 SUB 3 SUB ANS", True, True),
    ("8-3-2", "8 3 2 SUB SUB ANS", False, False),
    ("8-(3-2)", "8 3 SUB 2 ADD ANS", True, True),
    ("3-3", "3 3 SUB ANS", True, True),
    # Equal digits: which push stands for which place is chosen in the program's favour.
    ("3-(5-3)", "3 5 SUB 3 ADD ANS", True, True),
    ("3-(5-3)", "3 3 ADD 5 SUB ANS", True, True),
    ("(3+5)-3", "5 3 SUB 3 ADD ANS", True, True),
    ("(3-3)*5+2", "2 3 3 SUB 5 MUL SUB ANS", True, True),
    ("(3-4)*5+2", "2 3 4 SUB 5 MUL SUB ANS", False, False),
    ("(3-4)*5+2", "2 4 3 SUB 5 MUL SUB ANS", True, True),
    ("(4-3)*(2-1)", "3 4 SUB 1 2 SUB MUL ANS", True, True),
    ("(3-3)*(4-5)+2", "2 3 3 SUB 5 4 SUB MUL ADD ANS", True, True),
    ("(3-4)*(4-5)+2", "2 3 4 SUB 5 4 SUB MUL ADD ANS", False, False),
    ("3-5+3-5", "5 3 SUB 5 3 SUB ADD ANS", False, False),  # the negative
    ("1-1+(1-1)", "1 1 ADD 1 1 ADD SUB ANS", True, True),
    ("7", "7 STO RCL ANS", True, False),  # more than 3 actions, if there were as many
    ("7", "7 ANS", True, True),
    ("7", "6 ANS", False, False),
]


@pytest.mark.parametrize(("text", "tokens", "valid", "shortest"), JUDGED)
def test_programs_are_judged_as_a_person_would(text, tokens, valid, shortest):
    assert is_valid(text, program(tokens)) == valid
    judged = judge(text, program(tokens))
    assert {name: column.tolist() for name, column in judged.items()} == {
        "algebraically_valid": [valid],
        "shortest": [shortest],
    }
    assert tuple(judged) == TASK.judgements


def test_only_the_actions_that_count_are_judged():
    problems = pose("3+4", "3+4", "3+4")
    actions = np.array(
        [program("3 4 ADD ANS ANS"), program("3 4 ADD ANS 9"), program("3 4 ADD ANS 9")]
    )
    judged = TASK.judge(problems, actions, np.array([4, 5, 3]))
    assert judged["algebraically_valid"].tolist() == [True, True, False]
    assert judged["shortest"].tolist() == [True, False, False]
    assert all(not len(column) for column in TASK.judge(pose(), actions[:0], np.zeros(0)).values())


@settings(max_examples=200, deadline=None)
@given(text=expressions(most=4), tokens=st.lists(TOKEN, max_size=9), digits=st.randoms())
def test_random_programs_are_judged_like_the_polynomials_say(text, tokens, digits):
    """The program's digits are those of the text, so that some of them are right."""
    places = operands_of(text)
    tokens = [digits.choice(places) if token < 10 else token for token in tokens] + [ANS]
    assert judge(text, tokens)["algebraically_valid"][0] == is_valid(text, tokens)


@pytest.mark.parametrize("digits", ["353", "333", "345"])
def test_every_program_of_three_operands_for_every_expression_of_them(digits):
    """Each of the 18 skeletons with these digits, and the plan of each of them in each order."""
    problems = TASK.problems(3, 0, 18_000)
    texts = texts_of(problems.context).tolist()
    asked = [text for text in texts if "".join(map(str, operands_of(text))) == digits]
    orders = {"".join(order) for order in itertools.permutations(digits)}
    others = [text for text in texts if "".join(map(str, operands_of(text))) in orders]
    programs = [(*parse(text, 8, 29).postfix, ANS) for text in others]
    assert len(asked) == 18 and len(programs) == 18 * len(orders)
    pairs = list(itertools.product(asked, programs))
    actions, lengths = padded([tokens for _, tokens in pairs])
    judged = TASK.judge(pose(*[text for text, _ in pairs]), actions, lengths)
    expected = [is_valid(text, tokens) for text, tokens in pairs]
    assert judged["algebraically_valid"].tolist() == judged["shortest"].tolist() == expected
    assert len(asked) < sum(expected) < len(pairs) / 2


@pytest.mark.full
@pytest.mark.parametrize("operands", [4, 5])
def test_longer_expressions_with_equal_digits(operands):
    """Plans of other expressions that are right here too: some by coincidence, some not."""
    contexts = TASK.sample(np.random.default_rng(operands), np.full(400, operands)).context
    contexts = np.where(contexts < 10, 2 + contexts % 2, contexts)
    # Neighbours have the same digits, and mostly the same value.
    drawn = sorted((sorted(operands_of(t)), value_of(t), t) for t in texts_of(contexts).tolist())
    outcomes = []
    for (*about, text), (*about_other, other) in itertools.pairwise(drawn):
        if about == about_other:
            tokens = (*parse(other, 8, 50).postfix, ANS)
            outcomes.append(is_valid(text, tokens))
            assert judge(text, tokens)["algebraically_valid"][0] == outcomes[-1], (text, other)
    assert min(outcomes.count(True), outcomes.count(False)) >= 20


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_normal_forms_are_equal_where_polynomials_are(data):
    """Distinct digits are distinct variables: nothing is left open, so no order is tried."""
    size = data.draw(st.integers(2, 6))
    texts = []
    for order in (range(size), data.draw(st.permutations(range(size)))):
        digits = iter(order)
        text = data.draw(expressions(most=size, least=size))
        texts.append("".join(str(next(digits)) if c.isdigit() else c for c in text))
    one, other = (renamed(polynomial_of(text), operands_of(text)) for text in texts)
    forms = [normal_form(parse(text, 8, 50).postfix) for text in texts]
    assert (forms[0] == forms[1]) == (one == other)
    negative = type(one)({monomial: -factor for monomial, factor in other.items()})
    assert (forms[0] == forms[1].negated()) == (one == negative)


def renamed(polynomial, names):
    """With the n-th variable called names[n]."""
    return type(polynomial)(
        {tuple(sorted(str(names[int(v)]) for v in m)): n for m, n in polynomial.items()}
    )


@pytest.mark.parametrize("operands", range(2, 8))
def test_the_same_expression_written_otherwise_has_the_same_normal_form(operands):
    """Sides swapped, differences turned round: longer ones than all orders can be tried of."""
    rng = np.random.default_rng(operands)
    for text in texts_of(TASK.sample(rng, np.full(200, operands + 1)).context).tolist():
        postfix = parse(text, 8, 29).postfix
        assert normal_form(rewritten(postfix, rng)) == normal_form(postfix)
        # One operator changed is another polynomial, unless a sign does not matter.
        at = rng.choice([place for place, token in enumerate(postfix) if token >= 10])
        token = MUL if postfix[at] != MUL else ADD
        assert normal_form((*postfix[:at], token, *postfix[at + 1 :])) != normal_form(postfix)


def rewritten(postfix, rng):
    """The same value from other operations: a+b as b+a, a-b as 0-(b-a) pushed into what is above.

    Each entry is (tokens of it, tokens of its negative or None): a digit alone has no negative.
    """
    stack = []
    for token in postfix:
        if token < 10:
            stack.append(((token,), None))
            continue
        (right, minus_right), (left, minus_left) = stack.pop(), stack.pop()
        if token == MUL:
            forms = [(*left, *right, MUL), (*right, *left, MUL)]
            negatives = []
            if minus_left and minus_right:
                forms.append((*minus_left, *minus_right, MUL))
            if minus_left:
                negatives.append((*minus_left, *right, MUL))
            if minus_right:
                negatives.append((*minus_right, *left, MUL))
        else:
            if token == SUB:
                right, minus_right = minus_right, right
            # Of the sum of left and right: either may be known by its negative only.
            forms, negatives = [], []
            if left and right:
                forms += [(*left, *right, ADD), (*right, *left, ADD)]
            if left and minus_right:
                forms.append((*left, *minus_right, SUB))
                negatives.append((*minus_right, *left, SUB))
            if right and minus_left:
                forms.append((*right, *minus_left, SUB))
                negatives.append((*minus_left, *right, SUB))
            if minus_left and minus_right:
                negatives.append((*minus_left, *minus_right, ADD))
        pick = [
            options[rng.integers(len(options))] if options else None
            for options in (forms, negatives)
        ]
        stack.append(tuple(pick))
    return stack[0][0]


# The shortest programs --------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("text", ["7", "3-5", "2+2", "3-(5-3)", "2*(2+2)", "(4-1)*0", "1*1*1"])
def test_no_valid_program_is_shorter_than_2k_tokens(text):
    """Every program there is, played by the scalar machine: of the text's digits, another digit,
    the tools and a token that does nothing. Any other token is like one of these."""
    operands = operands_of(text)
    tokens = sorted({*operands, 9, MUL, ADD, SUB, STO, RCL, CTX})
    length = 2 * len(operands)
    for count in range(length):
        programs = [(*tools, ANS) for tools in itertools.product(tokens, repeat=count)]
        # A valid program is right on the text itself: that is quickly found out.
        right = [tools for tools in programs if answers(text, tools)]
        valid = {tools for tools in right if is_valid(text, tools)}
        if count + 1 < length:
            assert not valid
        judged = judge(text, *right)["shortest"] if right else np.zeros(0)
        assert {tools for tools, shortest in zip(right, judged, strict=True) if shortest} == valid
    assert TASK.plan(pose(text), 0) in valid


def answers(text, tools):
    machine = StackReference(text)
    return [machine.step(token)[3] for token in tools][-1]


@pytest.mark.parametrize(("stage", "split"), SPLITS)
def test_each_plan_solves_its_problem_in_2k_tokens_and_is_valid(stage, split):
    problems = TASK.sample(np.random.default_rng(stage), np.full(300, stage), split)
    plans = np.array([TASK.plan(problems, row) for row in range(300)])
    assert plans.shape == (300, 2 * stage)
    registers = TASK.start(problems)
    for actions in plans.T:
        transition = TASK.step(problems, registers, actions)
        registers = transition.registers
    assert transition.solved.all() and transition.terminated.all()
    judged = TASK.judge(problems, plans, np.full(300, 2 * stage))
    assert judged["algebraically_valid"].all() and judged["shortest"].all()


def test_the_plan_of_one_problem_as_a_person_would_write_it():
    problems = pose("7", "(3+4)*2", "1-(2-3*4)")
    plans = [VOCABULARY.text(TASK.plan(problems, row)) for row in range(3)]
    assert plans == ["7 ANS", "3 4 ADD 2 MUL ANS", "1 2 3 4 MUL SUB SUB ANS"]


@pytest.mark.parametrize(
    ("tokens", "formula"),
    [
        ("3 4 ADD 2 MUL ANS", "(3+4)*2"),
        ("3 4 ADD STO 2 RCL MUL ANS", "2*(3+4)"),
        ("1 2 3 SUB SUB ANS", "1-(2-3)"),
        ("1 2 SUB 3 SUB ANS", "1-2-3"),
        ("9 9 CTX ANS", "9"),
        ("7 ANS 8", "7"),
        ("3 4 ADD", None),
        ("ANS", None),
        ("5 STO ANS", None),
        ("", None),
    ],
)
def test_what_a_program_computes_is_written_as_an_expression(tokens, formula):
    assert TASK.computes(program(tokens)) == formula


@given(expressions(), st.lists(TOKEN, max_size=16))
def test_what_it_computes_has_the_value_that_it_answers_with(text, tokens):
    machine = StackReference(text)
    for token in tokens:
        if token != ANS:
            machine.use(token)
    formula = TASK.computes([token for token in tokens if token != ANS] + [ANS])
    assert (value_of(formula) if formula else None) == machine.acc


# Speed ------------------------------------------------------------------------------------------
