"""The parts of `eval.kill_campaign`: draw a kill, run and kill a job, judge what it left."""
