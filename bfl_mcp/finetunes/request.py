"""What an agent asks of a start, and when two calls ask for the same."""

import json
from dataclasses import dataclass
from typing import Any

from bfl_mcp.contract import TrainingParameters


@dataclass(frozen=True, slots=True)
class StartRequest:
    """What the agent asks for."""

    folder: str
    parameters: TrainingParameters
    dry_run: bool = False
    allow_duplicate: bool = False
    confirm_cost_usd: float | None = None

    @property
    def sent(self) -> dict[str, Any]:
        """The parameters as they are sent; a learning rate that was not given is left out."""
        names = set(TrainingParameters.model_fields)
        return self.parameters.model_dump(mode="json", include=names, exclude_none=True)

    @property
    def fingerprint(self) -> str:
        """The same for calls that mean the same start, as far as that can be told without reading the folder."""
        sent = {name: value for name, value in self.sent.items() if name != "finetune_comment"}
        return json.dumps([self.folder, sent, self.allow_duplicate], sort_keys=True)
