"""Throughput, start-up and the learning record: what `python -m toolagent.benchmark` is made of."""

LOCAL = "env_runners.num_env_runners=0"
NO_EXPLORATION = ("training.explorer_share=0.0", "training.replay_coeff=0.0")
# Row -> what is changed in the default config, or in that of the run that is measured.
PIPELINE_ROWS: dict[str, tuple[str, ...]] = {
    "batched_local": (LOCAL,),
    "batched_runners": (),
    # The same without exploration, as a run is once its stage is learned: the bare loop's work.
    "plain_local": (*NO_EXPLORATION, LOCAL),
    "plain_runners": NO_EXPLORATION,
}
REFERENCES = ("bare_loop", "stock_rllib")
ROWS = (*REFERENCES, *PIPELINE_ROWS)
