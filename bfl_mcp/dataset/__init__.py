"""A folder of images → findings, captions, one clean archive. Disk only, no network.

Imports nothing, so that the words of the tools come without the decoders: take what you need from its module.
"""
