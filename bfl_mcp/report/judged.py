"""A folder, examined and judged for a report: what check_dataset would answer, and each finding behind it."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bfl_mcp.config import Settings
from bfl_mcp.contract import Mode
from bfl_mcp.dataset.archive import Seen, examine_dataset
from bfl_mcp.dataset.findings import Finding
from bfl_mcp.dataset.folder import Dataset
from bfl_mcp.dataset.judge import Plan, judge
from bfl_mcp.finetunes.checked import DatasetChecked, tell_checked
from bfl_mcp.finetunes.packing import Packed
from bfl_mcp.finetunes.price import Quote, quote_training
from bfl_mcp.finetunes.provider import choose_provider

SEVERITIES = ("fault", "warning", "info")
"""Worst first, as reports show them."""

PLURALS = {"fault": "Faults", "warning": "Warnings", "info": "Notes"}
"""What many findings of a severity are called."""

SIGNS = {"fault": "✗", "warning": "!", "info": "i"}
"""What stands for a severity beside its colour, for whoever sees none."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What checks need to know beyond the folder; what is absent leaves its checks out."""

    mode: Mode | None = None
    trigger_word: str | None = None
    iterations: int | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What was found. `dataset` is open still, so that its pictures can be shown."""

    dataset: Dataset
    seen: Mapping[str, Seen]
    checked: DatasetChecked
    findings: tuple[Finding, ...]
    quote: Quote | None
    wanted: Wanted

    @property
    def counts(self) -> Counter[str]:
        """How many findings there are of each severity."""
        return Counter(str(finding.severity) for finding in self.findings)


def judge_folder(dataset: Dataset, wanted: Wanted, settings: Settings, on_image: Callable[[int], None]) -> Judged:
    """Examine every image, as check_dataset does; the archive is made, measured and dropped.

    `on_image` gets the number of images done so far.

    Raises:
        DatasetError: There is no room for the archive.
    """
    provider = choose_provider(settings)
    examined = examine_dataset(
        dataset, max_images=provider.max_images, max_megapixels=settings.max_megapixels, on_image=on_image
    )
    packed = Packed(dataset, examined, stamp="")
    packed.close()
    quote = None
    if wanted.iterations is not None:
        quote = quote_training(provider, wanted.iterations, is_our_trainer=False)
    plan = Plan(
        mode=wanted.mode,
        trigger_word=wanted.trigger_word,
        max_megapixels=settings.max_megapixels,
        provider=provider.name,
        max_upload_bytes=provider.max_upload_bytes,
    )
    checked = tell_checked(packed, provider, quote, plan, "full")
    findings = tuple(finding for finding in judge(dataset, examined, plan) if finding.severity in SEVERITIES)
    return Judged(dataset, examined.seen, checked, findings, quote, wanted)
