"""The fixtures of jobs, for the tests of this folder."""

from job_fixtures import base, copied, finished, place, tiny

__all__ = ["base", "copied", "finished", "place", "tiny"]
