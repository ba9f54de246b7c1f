"""The trainer as a process of its own: `python -m tests.trainer.serve DATA MAX_UPLOAD_MB PRACTICE_SECONDS`.

It prints its port, and answers until it is ended.
"""

import socket
import sys
from pathlib import Path

import uvicorn
from pydantic import SecretStr

from bfl_mcp.trainer.app import create_app


def main() -> None:
    data, max_upload_mb, practice_seconds = sys.argv[1:]
    app = create_app(
        Path(data),
        api_key=SecretStr("test-key"),
        max_upload_mb=float(max_upload_mb),
        practice_seconds=float(practice_seconds),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio does it for sockets of its own. Without it each answer waits 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - whoever started it reads this
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()
