"""Is it right, and is it fast: suites with expected scores, benchmarks beside peers, reports.

Needs a checkout (`pip install -e '.[test]'`); nothing here is imported by ftjob.
"""
