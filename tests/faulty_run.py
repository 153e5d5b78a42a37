"""`python -m toolagent.run` with a ledger of what becomes of every fragment; see `faulty`."""

from __future__ import annotations

import sys

from toolagent.cluster.ray_session import quiet

quiet()  # as the command does it, before Ray is imported

import time  # noqa: E402

from faulty import folder, identity, note  # noqa: E402

from toolagent import cli  # noqa: E402
from toolagent.learning.algorithm import ToolAgent  # noqa: E402
from toolagent.learning.pipeline_figures import PipelineFigures  # noqa: E402
from toolagent.run import __main__ as run  # noqa: E402
from toolagent.run import training  # noqa: E402


def noting(name, fate):
    method = getattr(PipelineFigures, name)

    def noted(self, fragment, *args):
        batch = fragment.batch
        note("fates.jsonl", fate=fate, identity=identity(batch), env_steps=batch.env_steps)
        return method(self, fragment, *args)

    setattr(PipelineFigures, name, noted)


def install():
    for name, fate in (("add", "learned"), ("drop", "dropped"), ("reject", "rejected")):
        noting(name, fate)
    next_batch = ToolAgent._next_batch

    def noted(self, figures):
        note("fates.jsonl", begins=[int(self.iteration) + 1, self.updates_done])
        return next_batch(self, figures)

    ToolAgent._next_batch = noted
    training.certify = taking_as_long_as_it_is_told(training.certify)


def taking_as_long_as_it_is_told(certify):
    """The calculator's certification is over before a test could interrupt it."""

    def certified(*args, **known):
        if (folder() / "hold-certification").exists():
            (folder() / "certifying").touch()
        while (folder() / "hold-certification").exists():
            time.sleep(0.05)
        return certify(*args, **known)

    return certified


if __name__ == "__main__":
    install()
    sys.exit(cli.main(run.command))
