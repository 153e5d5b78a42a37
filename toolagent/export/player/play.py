"""Plays an exported agent; needs NumPy, and the two files beside this one.

python player.py FLAG PROBLEM   prints the program that the agent writes, and its answer.
Shapes: B problems (all are played at once), L context tokens, A actions, D the network's width."""

import sys
from pathlib import Path

import numpy as np

from toolagent.export.player.calculator import FLAG, answer, read
from toolagent.export.player.files import load
from toolagent.export.player.stage_gru import Network


def play(network, card, context, stage):
    """The most probable tokens, one after the other: a list of B programs."""
    start, end = (card["special_tokens"][name] for name in ("start", "answer"))
    token, state = np.full(len(context), start), network.begin(context, stage)
    limits = np.array([card["action_limits"][str(s)] for s in stage.tolist()])
    tokens = np.full((len(context), limits.max() + 1), end)  # the last one ends every search below
    for step in range(limits.max()):
        logits, state = network.step(token, state)
        tokens[:, step] = token = logits.argmax(1)
    lengths = np.minimum((tokens == end).argmax(1) + 1, limits)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


if __name__ == "__main__":
    try:
        if len(sys.argv) != 3 or sys.argv[1] != FLAG:
            raise ValueError(f"expected {FLAG} and a problem")
        card, weights = load(Path(__file__).parent)
        shown, stage = read(sys.argv[2], card)
    except (OSError, ValueError) as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
    context = [card["context_vocabulary"].index(name) for name in shown]
    context += [card["special_tokens"]["pad"]] * (card["context_length"] - len(shown))
    (written,) = play(Network(weights, card), card, np.array([context]), np.array([stage]))
    program = [card["vocabulary"][token] for token in written]
    print(" ".join(program))
    if answer is not None:
        print("answer:", answer(shown, stage, program))
