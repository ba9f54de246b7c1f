"""`python -m bfl_mcp`: the same as the command `bfl-mcp`."""

from bfl_mcp.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
