"""A problem as its tokens, for tasks whose tools are not in this file: you answer for them."""

import sys

FLAGS = ("--context",)  # the stage, then the names of the context's tokens: "1 F5"
Tools = None  # are the machine's


def read(given, card):
    """The context's tokens, the stage, and a tool that reads its answers from the terminal."""
    stage, *context = given["--context"].split() or [""]
    stages, names = card["action_limits"], card["context_vocabulary"]
    if stage not in stages or len(context) > card["context_length"] or {*context} - {*names}:
        raise ValueError(
            f"--context: expected a stage, {' or '.join(stages)}, and then up to "
            f"{card['context_length']} of {' '.join(names)}"
        )

    def tool(name):
        """The next line: the answer's tokens, none if it is empty; the end of the input ends it."""
        line = sys.stdin.readline()
        told = line.split()
        if len(told) > card["response_length"] or {*told} - {*names}:
            most = f"expected up to {card['response_length']} of {' '.join(names)}"
            sys.exit(print(f"error: the answer to {name}: {most}", file=sys.stderr) or 2)
        return told, not line

    return context, int(stage), tool
