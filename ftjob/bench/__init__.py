"""Timing chosen sizes on the job's own device threads: rows in, answers out, beside what the device
itself can do. `commands/bench.py` drives it.
"""
