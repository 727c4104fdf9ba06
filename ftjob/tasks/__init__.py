"""The tasks, by the name `dataset.task` gives them."""

from __future__ import annotations

from ftjob.config.groups import JobConfig
from ftjob.tasks.base import Task
from ftjob.tasks.lambada import Lambada
from ftjob.tasks.prompts import Prompts
from ftjob.tasks.translation import Translation


def make_task(config: JobConfig) -> Task:
    """The task of a run; the choices of `dataset.task` are those of its type."""
    data, decode = config.dataset, config.decode
    if data.task == "translation":
        return Translation(data, decode)
    if data.task == "prompts":
        return Prompts(data, decode)
    return Lambada(data.ngrams, decode if data.generates else None)
