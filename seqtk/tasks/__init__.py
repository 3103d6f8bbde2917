"""Tasks, such as translation. Importing a file of this package registers its tasks."""

from seqtk.tasks import classification as classification
from seqtk.tasks import language_modeling as language_modeling
from seqtk.tasks import masked_lm as masked_lm
from seqtk.tasks import translation as translation
from seqtk.tasks.base import Task, TaskConfig, tasks
from seqtk.tasks.report import Report

__all__ = ["Report", "Task", "TaskConfig", "tasks"]
