"""One trial: a request, what goes wrong, a restart, the same request until it is settled, once more, the verdict."""

import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.torture.judge import judge, read_journal
from tests.torture.plan import Companion, Fault, Moment, Plan
from tests.torture.provider import KEY, Deed, Provider
from tests.torture.server import Call, Server

_SETTLE_SECONDS: Final = 0.3
_ANSWER_SECONDS: Final = 20.0
_SETTLED_SECONDS: Final = 25.0
_AFTER_CANCEL_SECONDS: Final = 0.2
_STDIN_GRACE_SECONDS: Final = 35.0
# Two seconds are the promise; the rest is for a machine with other work.
_SIGTERM_GRACE_SECONDS: Final = 5.0
_SIGTERM_FINISHES_SECONDS: Final = 1.5


@dataclass(slots=True)
class Outcome:
    """What came of a trial."""

    plan: Plan
    violations: list[str] = field(default_factory=list)
    conversation: list[str] = field(default_factory=list)
    starts: int = 0
    doubles: int = 0
    lost: int = 0
    adopted: int = 0
    released: int = 0
    tracebacks: int = 0
    struck: int = 0
    seconds: float = 0.0


def run_trial(plan: Plan, folder: Path) -> Outcome:
    """Run one trial in a folder of its own."""
    began = time.monotonic()
    trial = _Trial(plan, folder)
    try:
        with trial.provider.serve() as url:
            trial.url = url
            trial.run()
    except Exception as error:  # noqa: BLE001 - a harness that breaks has proved nothing, and must say so
        trial.violations.append(f"harness: {type(error).__name__}: {error}")
    finally:
        for server in trial.servers:
            server.destroy()
    trial.outcome.seconds = time.monotonic() - began
    return trial.outcome


class _Trial:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.home = folder / "home"
        self.url = ""
        self.servers: list[Server] = []
        self.outcome = Outcome(plan)
        self.violations = self.outcome.violations
        self.provider = Provider(self.log)
        self._began = time.monotonic()
        self._comments = iter(plan.comments * 50)
        self._duplicates: Counter[str] = Counter()
        self._requests = _make_requests(plan, folder)
        self._asked: list[str] = []

    def log(self, who: str, text: str) -> None:
        self.outcome.conversation.append(f"{time.monotonic() - self._began:7.3f} {who:9} {text}")

    def run(self) -> None:
        """The whole conversation, and the verdict."""
        if self.plan.foreign_before:
            # The very same words, made before: nothing of this trial may take it for its own.
            self.provider.add_foreign({**self.plan.parameters, "finetune_comment": self._comment("A")})
            self._comments = iter(self.plan.comments * 50)
        server: Server | None = None
        for fault in self.plan.faults:
            server = self._strike(fault, server)
        self._stop(server)
        if self.plan.foreign_between:
            self.provider.add_foreign({**self.plan.parameters, "finetune_comment": "Z: of somebody else"})
        open_before = {row.number for row in read_journal(self.home).rows if row.state in ("sending", "unclear")}
        self._settle_all()
        self._count(open_before)
        self.violations += judge(self.provider, self.servers, self.home, self._duplicates)

    # --- the fault ----------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault, server: Server | None) -> Server | None:
        """One round: the request, with one thing going wrong. Gives the server if it goes on with it."""
        self.log("trial", f"fault: {fault}")
        if server is None:
            server = self._spawn()
            server.greet()
        second = self._spawn() if fault.kind == "two processes" else None
        if second is not None:
            second.greet()
        (self.provider.next_lists if fault.kind == "list fails" else self.provider.next_starts).append(fault.deed)
        if fault.list_fails_after:
            # The first is read before the start, the second to find out what came of it.
            self.provider.next_lists.extend([Deed(), Deed("error", status=520)])
        calls = self._ask_all(fault, server, second)
        if fault.strikes:
            self._wait_for_moment(fault, calls)
            self._hit(fault, server, calls)
            self._struck.set()
        answered = self._collect(fault, calls)
        self.provider.forget_watched()
        self.provider.next_starts.clear()
        self.provider.next_lists.clear()
        survivor = second if second is not None and fault.strikes else server
        for each in (server, second):
            if each is not survivor:
                self._stop(each, fault)
        usable = survivor.alive and not survivor.struck and fault.kind != "stdin closed"
        if answered and usable and fault.same_process_next:
            survivor.free_disk()
            return survivor
        self._stop(survivor, fault)
        return None

    def _ask_all(self, fault: Fault, server: Server, second: Server | None) -> list[tuple[Server, Call]]:
        if fault.strikes:
            self._arm(fault.moment)
        calls = [(server, self._ask(server, "A"))]
        if second is not None:
            time.sleep(fault.stagger_seconds)
            calls.append((second, self._ask(second, "A")))
        if fault.companion != "none":
            time.sleep(fault.stagger_seconds)
            calls.append((server, self._ask(server, _label(fault.companion), slash=fault.spelled_anew)))
        return calls

    def _arm(self, moment: Moment) -> None:
        reached, struck = self._reached, self._struck = threading.Event(), threading.Event()

        def strike() -> None:
            reached.set()
            # The exchange waits for a strike without delay, and goes on before a later one.
            if moment.seconds == 0:
                struck.wait(5)

        if moment.stage is not None:
            self.provider.watch(moment.stage, strike)

    def _wait_for_moment(self, fault: Fault, calls: list[tuple[Server, Call]]) -> None:
        if fault.moment.stage is not None:
            # Where it is settled without getting there, it strikes late.
            deadline = time.monotonic() + _ANSWER_SECONDS
            while not self._reached.wait(0.01) and time.monotonic() < deadline:
                if all(call.answered is not None for _, call in calls):
                    break
        time.sleep(fault.moment.seconds)

    def _hit(self, fault: Fault, server: Server, calls: list[tuple[Server, Call]]) -> None:
        self.outcome.struck += 1
        match fault.kind:
            case "kill -9" | "two processes":
                server.signal(signal.SIGKILL)
            case "SIGTERM":
                server.signal(signal.SIGTERM)
            case "stdin closed":
                server.close_stdin()
            case "cancelled":
                server.cancel(calls[0][1])
            case "disk full":
                server.fill_disk(fault.disk_bytes)

    def _collect(self, fault: Fault, calls: list[tuple[Server, Call]]) -> bool:
        """Wait for the answers; False where one is missing."""
        whole = True
        for server, call in calls:
            limit = _AFTER_CANCEL_SECONDS if fault.kind == "cancelled" and call.given_up else _ANSWER_SECONDS
            if server.wait(call, limit) or call.given_up:
                continue
            whole = whole and server.struck
            if server.alive and not server.struck:
                self.violations.append(f"hang: {server.name} gave no answer to call {call.number} in {limit:.0f} s")
        return whole

    # --- afterwards ---------------------------------------------------------------------------------------------------

    def _settle_all(self) -> None:
        server = self._spawn()
        server.greet()
        if self.plan.impatient:
            self._start_duplicate(server)
        settled = {label: self._settle(server, label) for label in dict.fromkeys(["A", *self._asked])}
        for label, finetune_id in settled.items():
            self._ask_once_more(server, label, finetune_id)
        if self.plan.duplicate_at_end and settled["A"] is not None:
            self._start_duplicate(server)
        self._stop(server)

    def _settle(self, server: Server, label: str) -> str | None:
        """Ask the same until it is settled; the id."""
        deadline = time.monotonic() + _SETTLED_SECONDS
        while time.monotonic() < deadline:
            call = self._ask(server, label)
            if not server.wait(call, _ANSWER_SECONDS):
                self.violations.append(f"hang: {server.name} gave no answer to call {call.number}, or ended")
                return None
            if call.structured is not None and (finetune_id := call.structured.get("finetune_id")):
                return str(finetune_id)
            time.sleep(_SETTLE_SECONDS / 3)
        self.violations.append(f"unsettled: nobody knows after {_SETTLED_SECONDS:.0f} s what came of {label}")
        return None

    def _ask_once_more(self, server: Server, label: str, finetune_id: str | None) -> None:
        deadline = time.monotonic() + _SETTLED_SECONDS
        call = self._ask(server, label)
        server.wait(call, _ANSWER_SECONDS)
        while self._has_open_rows() and time.monotonic() < deadline:
            # A second one started on purpose is answered before the first, lost one is given up.
            time.sleep(_SETTLE_SECONDS / 3)
            call = self._ask(server, label)
            server.wait(call, _ANSWER_SECONDS)
        content = call.structured or {}
        # Where two were started on purpose, either is the answer.
        same = content.get("finetune_id") == finetune_id or self._duplicates[label]
        if finetune_id and not (same and content.get("started") is False):
            self.violations.append(f"repeat: {label} is {finetune_id}, and once more it was answered {call.message}")

    def _has_open_rows(self) -> bool:
        return any(row.state in ("sending", "unclear") for row in read_journal(self.home).rows)

    def _start_duplicate(self, server: Server) -> None:
        self._duplicates["A"] += 1
        call = self._ask(server, "A", allow_duplicate=True)
        server.wait(call, _ANSWER_SECONDS)
        content = call.structured or {}
        newest = server.call("get_finetune_details", "", {})
        server.wait(newest, _ANSWER_SECONDS)
        if not content.get("started"):
            self.violations.append(f"duplicate: allow_duplicate was answered {call.message}")
        elif (newest.structured or {}).get("finetune_id") != content.get("finetune_id"):
            self.violations.append(f"newest: it is {content.get('finetune_id')}, and was told as {newest.message}")

    def _count(self, open_before: set[int]) -> None:
        counted = [start for start in self.provider.starts if start.counted]
        rows = read_journal(self.home).rows
        known = {row.finetune_id for row in rows}
        labels = Counter(start.label for start in counted)
        self.outcome.starts = len(counted)
        self.outcome.doubles = sum(max(0, count - 1 - self._duplicates[label]) for label, count in labels.items())
        self.outcome.lost = sum(start.finetune_id not in known for start in counted)
        self.outcome.adopted = sum(row.state == "started" and row.number in open_before for row in rows)
        self.outcome.released = sum(row.state == "released" for row in rows)
        self.outcome.tracebacks = sum("Traceback" in line for server in self.servers for line in server.errors)

    # --- servers and requests -----------------------------------------------------------------------------------------

    def _spawn(self) -> Server:
        environment = {
            "BFL_API_URL": self.url,
            "BFL_API_KEY": KEY,
            "BFL_MCP_HOME": str(self.home),
            "BFL_MCP_ALLOWED_DIRS": str(self.home.parent),
            "BFL_MCP_SETTLE_SECONDS": str(_SETTLE_SECONDS),
        }
        server = Server(f"server {len(self.servers) + 1}", environment, self.log)
        self.servers.append(server)
        return server

    def _stop(self, server: Server | None, fault: Fault | None = None) -> None:
        """End a server the polite way, and see that it goes, and in what state it leaves the journal."""
        if server is None:
            return
        kind = fault.kind if fault is not None else None
        if server.alive and not server.struck:
            server.close_stdin()
        limit = _SIGTERM_GRACE_SECONDS if server.struck else _STDIN_GRACE_SECONDS
        if not server.wait_for_end(limit):
            self.violations.append(
                f"outlives: {server.name} still ran {limit:.0f} s after its end was asked for ({kind})"
            )
            server.destroy()
        if server.leaves_children():
            self.violations.append(f"outlives: {server.name} left children")
        if kind in ("stdin closed", "cancelled", "SIGTERM") and not server.disk_was_full:
            self._check_shielded(server, kind)

    def _check_shielded(self, server: Server, kind: str) -> None:
        """A start that is answered while its server is allowed to finish is in the journal once that ended."""
        known = {row.finetune_id for row in read_journal(self.home).rows}
        for start in self.provider.starts:
            late = server.struck_at + _SIGTERM_FINISHES_SECONDS
            # What an earlier server left behind is not this one's to write down.
            its_own = server.began <= start.arrived and start.due is not None and start.due < late
            if its_own and start.finetune_id not in known:
                self.violations.append(f"shield: {server.name} ({kind}) ended without writing down {start.finetune_id}")

    def _ask(self, server: Server, label: str, *, slash: bool = False, **more: Any) -> Call:
        if label not in self._asked:
            self._asked.append(label)
        folder, parameters = self._requests[label]
        comment = {"folder": f"{folder}/" if slash else str(folder), "finetune_comment": self._comment(label)}
        return server.call("create_finetune", label, {**comment, **parameters, **more})

    def _comment(self, label: str) -> str:
        """Reworded each time, as models do. The first letter tells the ledger which request it was."""
        return f"{label}: {next(self._comments)}"


def _label(companion: Companion) -> str:
    return {"twin": "A", "other parameters": "B", "other captions": "C"}[companion]


def _make_requests(plan: Plan, folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The requests of a trial: A, B with other parameters, C with other captions."""
    pictures, captions = folder / "pictures", folder / "captions"
    for number, (path, caption) in enumerate(plan.pictures):
        for target, words in ((pictures, caption), (captions, f"{caption}, seen from above")):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / f"{number}.jpg")
            (target / f"{number}.txt").write_text(words, encoding="utf-8")
    others = {**plan.parameters, "iterations": plan.parameters.get("iterations", 300) % 1000 + 100}
    others["iterations"] = min(others["iterations"], 1000)
    return {"A": (pictures, plan.parameters), "B": (pictures, others), "C": (captions, plan.parameters)}
