"""A problem as its tokens: for tasks whose machine is not in this file."""

FLAG = "--context"  # the stage, then the names of the context's tokens: "1 F5"
answer = None  # is the machine's to tell


def read(text):
    """The context's tokens and the stage of a problem."""
    stage, *context = text.split() or [""]
    if not (stage.isascii() and stage.isdigit()):
        raise ValueError(f"{FLAG}: expected a stage and the names of tokens, such as '1 A B'")
    return context, int(stage)
