"""What is asked and how an answer is graded. A task's own module may rely on the names here."""

from vllm_eval.records import Case, Grade, Problem
from vllm_eval.tasks.task import Task, open_stored, open_task, refuse_file

__all__ = ["Case", "Grade", "Problem", "Task", "open_stored", "open_task", "refuse_file"]
