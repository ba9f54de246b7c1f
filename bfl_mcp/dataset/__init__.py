"""A folder of images → findings, captions, one clean archive. Disk only, no network."""

from bfl_mcp.dataset.archive import Archive, pack_dataset
from bfl_mcp.dataset.folder import Dataset, ImageFile, Skipped, folder_path, read_dataset

__all__ = ["Archive", "Dataset", "ImageFile", "Skipped", "folder_path", "pack_dataset", "read_dataset"]
