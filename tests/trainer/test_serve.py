"""`bfl-mcp trainer` as a person starts it: the key, the address, what it says, and Ctrl-C."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bfl_mcp import __version__
from bfl_mcp.trainer.jobs import Jobs
from tests.trainer.archives import start
from tests.trainer.processes import REPOSITORY, end, is_over, wait_until, workers

COMMAND = [sys.executable, "-m", "bfl_mcp", "trainer"]


@dataclass
class Started:
    """A trainer that has said what it has to say."""

    process: "subprocess.Popen[str]"
    said: str = ""
    url: str = ""

    @property
    def key(self) -> str:
        found = re.search(r"^Key: +(\S{20,})$", self.said, re.MULTILINE)
        return found[1] if found else ""

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {"x-key": key} if key else {}
        return httpx.get(f"{self.url}{path}", headers=headers, trust_env=False, timeout=10)

    def stop(self, number: int = signal.SIGINT) -> tuple[int, float, str]:
        """Exit status, seconds it took, and the last words."""
        began = time.monotonic()
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, time.monotonic() - began, out


@contextmanager
def started(data: Path, *arguments: str, **environment: str) -> Iterator[Started]:
    command = [*COMMAND, "--data", str(data), "--port", "0", "--engine", "practice", *arguments]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        trainer = Started(process)
        try:
            assert process.stdout is not None
            while not trainer.said.endswith("goes on by itself.\n"):
                line = process.stdout.readline()
                assert line, trainer.said
                trainer.said += line
            port = re.search(r"http://\S+:(\d+)", trainer.said)
            assert port is not None
            trainer.url = f"http://127.0.0.1:{port[1]}"
            yield trainer
        finally:
            process.kill()


def refused(*arguments: str, **environment: str) -> str:
    """The sentence with which it does not start."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return done.stderr


# --- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_made_at_the_first_start_shown_once_and_kept(data: Path) -> None:
    """Nobody starts without one, nobody must invent one, and what scrolls by later holds none."""
    with started(data) as first:
        key = first.key
        assert f"BFL_API_KEY={key}" in first.said
        assert first.get("/v1/my_finetunes", key).status_code == 200
        assert first.get("/v1/my_finetunes").status_code == 403

    with started(data) as second:
        assert key not in second.said
        assert f"the one kept in {data / 'key'}" in second.said
        assert second.get("/v1/my_finetunes", key).status_code == 200

    assert len(key) >= 40
    assert (data / "key").read_text(encoding="utf-8").strip() == key
    assert (data / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_of_one_s_own_is_taken_and_never_shown(data: Path) -> None:
    """It comes from a secret store, and standard output goes into a log."""
    with started(data, BFL_TRAINER_KEY="test-key") as trainer:
        assert trainer.get("/v1/my_finetunes", "test-key").status_code == 200
        assert "test-key" not in trainer.said
        assert not (data / "key").exists()


@pytest.mark.parametrize("content", ["", "\n", "two words", "schlüssel"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_without_a_key_it_does_not_start(data: Path, content: str, host: str) -> None:
    """An emptied file must not open the door, least of all to the network."""
    (data / "key").write_text(content, encoding="utf-8")

    sentence = refused("--data", str(data), "--port", "0", "--engine", "practice", "--host", host)

    assert "holds no key, and without one the trainer would let everybody in" in sentence
    assert "BFL_TRAINER_KEY" in sentence


def test_a_start_that_fails_makes_no_key(data: Path) -> None:
    """A key that was never shown could not be used."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        sentence = refused("--data", str(data), "--port", port, "--engine", "practice")

    assert f"cannot listen on '127.0.0.1', port {port}" in sentence
    assert not (data / "key").exists()


def test_neither_key_reaches_a_worker(data: Path) -> None:
    """Engines load code of others; what they cannot see they cannot pass on."""
    environment = {"BFL_TRAINER_KEY": "test-key", "BFL_API_KEY": "test-key", "BFL_TRAINER_PRACTICE_SECONDS": "60"}
    with started(data, **environment) as trainer:
        httpx.post(f"{trainer.url}/v1/finetune", json=start(), headers={"x-key": "test-key"}, trust_env=False)
        wait_until(lambda: workers(data))
        [worker] = workers(data)

        assert not {"BFL_TRAINER_KEY", "BFL_API_KEY"} & set(worker.environ())


# --- the address ------------------------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_alone_and_says_what_to_set(data: Path) -> None:
    """What the person copies into the chat host, and the tunnel for a GPU that stands elsewhere."""
    with started(data) as trainer:
        port = trainer.url.rpartition(":")[2]
        health = trainer.get("/healthz").json()

        assert f"BFL_API_URL=http://127.0.0.1:{port}" in trainer.said
        assert f"ssh -N -L {port}:127.0.0.1:{port}" in trainer.said
        assert "TLS" not in trainer.said
        assert "practice. It goes through the motions and trains nothing" in trainer.said
        assert health == {"status": "ok", "engine": "practice", "version": __version__}
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", int(port)), 5):
            pass


def test_on_any_other_address_it_says_that_tls_belongs_in_front(data: Path) -> None:
    """The key and the pictures would go over the network as they are; our own client refuses that, too."""
    with started(data, "--host", "0.0.0.0") as trainer:
        assert "TLS belongs in front" in trainer.said
        assert "BFL_API_URL=https://" in trainer.said
        assert trainer.get("/v1/my_finetunes").status_code == 403
        assert trainer.get("/v1/my_finetunes", trainer.key).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "nowhere.invalid"], "cannot listen on 'nowhere.invalid'"),
        (["--port", "70000"], "'70000' is no port"),
        (["--gpus", "0"], "'0' is neither a number from 1 to 64 nor 'all'"),
        (["--engine", "of-tomorrow"], "invalid choice"),
        (["--model", "no model"], "BFL_TRAINER_MODEL"),
        (["--data", "/dev/null/folder"], "cannot keep its data and its key in '/dev/null/folder'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(data: Path, arguments: list[str], words: str) -> None:
    """A person reads it, in a terminal or in the log of a service."""
    assert words in refused("--data", str(data), "--port", "0", "--engine", "practice", *arguments)


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_within_a_second_and_its_trainings_go_on(data: Path, number: int) -> None:
    """Ctrl-C is for the server. Hours of training must not hang on a terminal."""
    with started(data, "--gpus", "2", BFL_TRAINER_PRACTICE_SECONDS="2.5") as trainer:
        for _ in range(2):
            httpx.post(f"{trainer.url}/v1/finetune", json=start(), headers={"x-key": trainer.key}, trust_env=False)
        wait_until(lambda: [job.read_progress().state for job in Jobs(data).all()] == ["training"] * 2)
        at_work = workers(data)
        # A connection that is kept open must not hold it up either.
        with socket.create_connection(("127.0.0.1", int(trainer.url.rpartition(":")[2]))) as idle:
            idle.sendall(b"POST /v1/finetune HTTP/1.1\r\nhost: x\r\nx-key: %b\r\n" % trainer.key.encode())
            status, took, words = trainer.stop(number)

    assert (status, len(at_work)) == (0, 2)
    assert took < 1.5
    assert words == (
        "Stopped. 2 finetunes are in training and go on by themselves. Start the trainer again to ask for them.\n"
    )
    assert not any(is_over(worker) for worker in at_work)
    wait_until(lambda: [job.read_progress().state for job in Jobs(data).all()] == ["ready"] * 2)


def test_it_says_where_nothing_is_in_training(data: Path) -> None:
    """Then the machine may be switched off."""
    with started(data) as trainer:
        status, _, words = trainer.stop()

    assert (status, words) == (0, "Stopped. No finetune is in training.\n")


def test_a_worker_that_is_killed_is_replaced_though_nobody_asks(data: Path) -> None:
    """A night's training must not wait for the morning because memory ran out for a moment."""
    with started(data, BFL_TRAINER_PRACTICE_SECONDS="60") as trainer:
        httpx.post(f"{trainer.url}/v1/finetune", json=start(), headers={"x-key": trainer.key}, trust_env=False)
        wait_until(lambda: workers(data))
        [killed] = workers(data)
        end(killed)

        wait_until(lambda: [worker for worker in workers(data) if worker.pid != killed.pid], 25)
