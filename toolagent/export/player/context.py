"""A problem as its tokens: for tasks whose machine is not in this file."""

FLAG = "--context"  # the stage, then the names of the context's tokens: "1 F5"
answer = None  # is the machine's to tell


def read(text, card):
    """The context's tokens and the stage of a problem."""
    stage, *context = text.split() or [""]
    stages, names = card["action_limits"], card["context_vocabulary"]
    if stage not in stages or len(context) > card["context_length"] or {*context} - {*names}:
        raise ValueError(
            f"{FLAG}: expected a stage, {' or '.join(stages)}, and then up to "
            f"{card['context_length']} of {' '.join(names)}"
        )
    return context, int(stage)
