"""What a finetune is trained with. An engine is a function of a job and a place to report to."""

from collections.abc import Callable
from typing import Final

from bfl_mcp.trainer.engines.practice import practice
from bfl_mcp.trainer.jobs import Job

Report = Callable[[int, float | None, str], None]
"""Takes the steps done, the seconds left or None while nobody can tell, and in words what is being done.

Raises JobGoneError to end the work.
"""


class TrainingError(Exception):
    """A sentence that says what happened, with which value, and what to change. A retry would end the same."""


def _flux2(job: Job, report: Report) -> None:
    # PyTorch is imported with it, which takes seconds and is not always there.
    from bfl_mcp.trainer.engines.flux2.run import flux2

    flux2(job, report)


ENGINES: Final[dict[str, Callable[[Job, Report], None]]] = {"practice": practice, "flux2": _flux2}
