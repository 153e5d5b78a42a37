"""A search that only tests need, beside the oracle: the best program of a stage."""

import numpy as np

from toolagent.tasks import oracle
from toolagent.vocabulary import ANS

RACE_PROBES = 4096  # problems on which the share of a behaviour is estimated
RACE_FAILURE = 1e-9  # probability that the race in `best_program` drops the best behaviour


def keys(layer):
    return {oracle._key(behaviour.registers) for behaviour in layer}


def longer(task, problems, layer, known):
    """The behaviours of all programs one token longer, without the known ones."""
    found = oracle._longer(task, problems, layer)
    return [behaviour for behaviour in found if oracle._key(behaviour.registers) not in known]


def best_program(task, stage, max_length=None):
    """The program that solves the largest share of the stage's problems, and that share.

    Behaviours are told apart, and their shares estimated, on n probe problems. They are then
    counted on all problems in descending order of the estimate, until an estimate p is so low
    that the best exact share s cannot be reached: p + m < s, where by Hoeffding's inequality
    m = sqrt(ln(behaviours / 1e-9) / 2n) errs with probability 1e-9. In a stage of up to n
    problems the probes are all of them. The share returned is exact, counted on every problem;
    of equal shares the shorter program wins, then the one with the lower tokens.

    Raises:
        ValueError: as for `shortest_programs`.
    """
    stage, length = oracle._checked(task, stage, max_length)
    total = task.num_problems(stage)
    probes = (
        task.problems(stage, 0, total)
        if total <= RACE_PROBES
        else oracle._probes(task, stage, RACE_PROBES)
    )
    entries = []
    layer, known = [oracle._Behaviour(task.start(probes))], set()
    for _ in range(length):
        for behaviour in layer:
            share = float(oracle._answered(task, probes, behaviour.registers).mean())
            entries.append((share, (*min(behaviour.programs()), ANS)))
        # What a shorter program does as well is left out.
        known |= keys(layer)
        layer = longer(task, probes, layer, known)
    entries.sort(key=lambda entry: (-entry[0], len(entry[1]), entry[1]))

    margin = np.sqrt(np.log(len(entries) / RACE_FAILURE) / (2 * len(probes)))
    best = None  # (-share, length, program)
    for estimate, program in entries:
        if best is not None and estimate + margin < -best[0]:
            break
        solved = sum(
            int(oracle._play(task, chunk, program).sum()) for chunk in oracle._chunks(task, stage)
        )
        contender = (-solved / total, len(program), program)
        best = contender if best is None else min(best, contender)
    return best[2], -best[0]
