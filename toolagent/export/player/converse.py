"""Plays an exported agent whose tools answer; needs NumPy, and the two files beside this one.

python player.py FLAG VALUE ...   prints the agent's calls, and what each was answered with.
Your own tools: a function for `play`, or for one problem at a time a function for `one_by_one`.
Shapes: B problems (all are played at once), L context tokens, R tokens of an answer, A actions,
D the network's width."""

import sys
from pathlib import Path

import numpy as np

from toolagent.export.player.files import load
from toolagent.export.player.stage_gru import Network
from toolagent.export.player.toolcall import FLAGS, read


def play(network, card, context, stage, tools):
    """The most probable tokens, one after the other: a list of B programs.

    tools(tokens) does what the (B,) tokens say. It returns what each is answered with, (B, R)
    tokens, `pad` where there is nothing, and (B,) bool, which episodes are over; what it returns
    of those from then on counts for nothing.
    """
    start, pad = (card["special_tokens"][name] for name in ("start", "pad"))
    token, state = np.full(len(context), start), network.begin(context, stage)
    response = np.full((len(context), card["response_length"]), pad)
    limits = np.array([card["action_limits"][str(s)] for s in stage.tolist()])
    tokens, lengths = [], np.zeros(len(context), int)
    over = np.zeros(len(context), bool)
    while not over.all():
        logits, state = network.step(token, state, response)
        token = logits.argmax(1)
        tokens.append(token)
        lengths += ~over
        response, ended = tools(token)
        over = over | ended | (lengths >= limits)
    return [row[:length].tolist() for row, length in zip(np.array(tokens).T, lengths, strict=True)]


def one_by_one(card, tool):
    """The tools of one problem for `play`: tool(name) takes the name of a token, and returns the
    names of the tokens that it is answered with, and whether the episode is over.
    """
    names, pad = card["context_vocabulary"], card["special_tokens"]["pad"]

    def tools(tokens):
        told, over = tool(names[tokens[0]])
        told = [names.index(name) for name in told]
        return np.array([told + [pad] * (card["response_length"] - len(told))]), np.array([over])

    return tools


if __name__ == "__main__":
    try:
        given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
        if len(sys.argv) % 2 == 0 or {*given} - {*FLAGS} or FLAGS[0] not in given:
            raise ValueError(f"expected {' and '.join(FLAGS)}, a value behind each")
        card, weights = load(Path(__file__).parent)
        shown, stage, tool = read(given, card)
    except (OSError, ValueError) as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
    context = [card["context_vocabulary"].index(name) for name in shown]
    context += [card["special_tokens"]["pad"]] * (card["context_length"] - len(shown))

    def shown_tool(name):
        """The tool; its answer ends a line."""
        print(name, end=" ", flush=True)
        told, over = tool(name)
        if told or over:
            print(*(["->", *told] if told else []))
        return told, over

    tools = one_by_one(card, shown_tool)
    play(Network(weights, card), card, np.array([context]), np.array([stage]), tools)
