"""A folder of images → findings, captions, one clean archive. Disk only, no network."""

from bfl_mcp.dataset.access import Access
from bfl_mcp.dataset.archive import Archive, Examined, examine_dataset, pack_dataset, refusal
from bfl_mcp.dataset.folder import Dataset, ImageFile, Skipped, read_dataset

__all__ = [
    "Access",
    "Archive",
    "Dataset",
    "Examined",
    "ImageFile",
    "Skipped",
    "examine_dataset",
    "pack_dataset",
    "read_dataset",
    "refusal",
]
