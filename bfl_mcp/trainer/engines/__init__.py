"""What a finetune is trained with. An engine is a function of a job and a place to report steps to."""

from collections.abc import Callable
from typing import Final

from bfl_mcp.trainer.engines.practice import practice
from bfl_mcp.trainer.jobs import Job

Report = Callable[[int, float | None], None]
"""Takes the steps done and the seconds left, or None while nobody can tell. Raises JobGoneError to end the work."""

ENGINES: Final[dict[str, Callable[[Job, Report], None]]] = {"practice": practice}
