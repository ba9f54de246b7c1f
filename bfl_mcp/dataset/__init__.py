"""A folder of images → findings, captions, one clean archive. Disk only, no network."""

from bfl_mcp.dataset.access import Access
from bfl_mcp.dataset.archive import Archive, pack_dataset
from bfl_mcp.dataset.folder import Dataset, ImageFile, Skipped, read_dataset

__all__ = ["Access", "Archive", "Dataset", "ImageFile", "Skipped", "pack_dataset", "read_dataset"]
