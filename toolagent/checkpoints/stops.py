"""Why a run ended, in words."""

STOPPED_BY = {
    "solved": "every stage of the curriculum is certified solved",
    "env_steps": "the limit of env steps is reached",
    "time": "the limit of training time is reached",
    "iterations": "the limit of iterations is reached",
    "interrupted": "interrupted; continue with --resume",
}
