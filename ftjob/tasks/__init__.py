"""The tasks, by the name `dataset.task` gives them."""

from __future__ import annotations

from ftjob.config.groups import JobConfig
from ftjob.tasks.base import Task
from ftjob.tasks.lambada import Lambada


def make_task(config: JobConfig) -> Task:
    """The task of a run; the choices of `dataset.task` are those of its type."""
    return Lambada(ngrams=config.dataset.ngrams)
