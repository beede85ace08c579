"""What is asked and how an answer is graded. Modules of tasks may rely on these names."""

from vllm_eval.records import Case, Grade, Problem
from vllm_eval.tasks.task import Task, open_stored, open_task, refuse_file

__all__ = ["Case", "Grade", "Problem", "Task", "open_stored", "open_task", "refuse_file"]
