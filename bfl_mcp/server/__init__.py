"""The MCP face: the tools an agent sees, and the one place where failures become tool errors."""

from bfl_mcp.server.build import build_server

__all__ = ["build_server"]
