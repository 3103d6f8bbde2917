"""Where data, model, criterion and metric meet: one import line a task, which registers it."""

from seqtk.tasks import demo as demo
from seqtk.tasks import language_modeling as language_modeling
from seqtk.tasks import translation as translation
from seqtk.tasks.base import Task, TaskConfig, tasks

__all__ = ["Task", "TaskConfig", "tasks"]
