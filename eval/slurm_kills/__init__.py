"""The parts of `eval.slurm_campaign`: draw an event, have it strike a job on a cluster, judge."""
