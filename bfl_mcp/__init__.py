"""bfl-mcp: from a folder of images to a FLUX finetune, in conversation."""

__version__ = "0.1.0"
