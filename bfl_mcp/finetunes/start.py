"""From a folder to a started finetune: pack, ask whoever pays, send. What takes longer than a call goes on."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from anyio.abc import TaskGroup

from bfl_mcp.errors import OutcomeUnknownError
from bfl_mcp.finetunes.background import Background, Call
from bfl_mcp.finetunes.consent import Consents
from bfl_mcp.finetunes.journal import Entry
from bfl_mcp.finetunes.packing import Packed, Packing
from bfl_mcp.finetunes.past import Past
from bfl_mcp.finetunes.request import StartRequest
from bfl_mcp.finetunes.sending import Sender
from bfl_mcp.finetunes.spend import Answer, Question
from bfl_mcp.finetunes.started import FinetuneStarted

_OUTCOME_KEPT_SECONDS: Final = 600.0
"""How long the outcome of a start that nobody waited for is kept for the same call again."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sending:
    """A start under way, or whose outcome nobody has asked for yet."""

    work: Background[FinetuneStarted]
    packed: Packed


class Starts:
    """All starts of one server process. Work runs in `tasks`, so that no request that ends takes it along."""

    def __init__(self, packing: Packing, consents: Consents, sender: Sender, past: Past, tasks: TaskGroup) -> None:
        self._packing = packing
        self._consents = consents
        self._sender = sender
        self._past = past
        self._tasks = tasks
        self._sending: dict[str, _Sending] = {}
        self._newest: _Sending | None = None
        self._never_told: set[str] = set()

    async def start(self, request: StartRequest, call: Call, answer: Answer | None) -> FinetuneStarted:
        """Start one finetune, or return the one that the same request started before.

        `answer` is what the person said, None where the host cannot ask.

        Raises:
            DatasetError: The folder cannot be trained on; every fault is named and nothing was sent.
            SpendRefusedError: It costs money and nobody has agreed to it; nothing was sent.
            APIError: The provider refused or could not be reached; nothing was started.
            OutcomeUnknownError: It was sent and may be running.
        """
        if request.dry_run:
            return await self._rehearse(request, call)
        key = request.fingerprint
        self._forget_old_outcomes()
        request = self._as_meant(request)
        agreed, agreed_to = False, ""
        is_left_over = key in self._sending
        while key not in self._sending:
            packed = await self._packing.pack(request.folder, call)
            if packed is None:
                return self._still_packing(request)
            if packed.archive.sha256 != agreed_to:
                agreed = await self._consents.check(request, packed, call, answer)
                agreed_to = packed.archive.sha256
            if key not in self._sending and self._packing.take(request.folder, packed):
                work = Background(self._tasks, partial(self._sender.send, request, packed, agreed))
                self._newest = self._sending[key] = _Sending(work, packed)
        sending = self._sending[key]
        if not await sending.work.wait(call, at_least=1.0):
            return self._sender.report(request).still_sending(sending.work.doing)
        if self._sending.get(key) is sending:
            del self._sending[key]
        # What got lost may have been made: the next call like this one looks for it, and does not make another.
        self._never_told.discard(key)
        if isinstance(sending.work.failure, OutcomeUnknownError) and request.allow_duplicate:
            self._never_told.add(key)
        outcome = sending.work.result()
        if is_left_over and outcome.started and await self._packing.has_changed(request.folder, sending.packed):
            outcome = self._sender.report(request).of_an_earlier_folder(outcome)
        return outcome

    async def _rehearse(self, request: StartRequest, call: Call) -> FinetuneStarted:
        packed = await self._packing.pack(request.folder, call)
        if packed is None:
            return self._still_packing(request)
        return await self._sender.rehearse(request, packed, call)

    async def question(self, request: StartRequest, call: Call, *, answered: bool) -> Question | None:
        """What the person must be asked before this start, or None where nothing needs their consent.

        `answered` is whether they were asked: a folder that has changed since is refused then.

        Raises:
            SpendRefusedError: The answer came too late, or to a question about a folder that has changed.
            DatasetError, APIError: As for `start`, which would meet the same.
        """
        self._forget_old_outcomes()
        if request.dry_run or request.fingerprint in self._sending:
            return None
        return await self._consents.question(self._as_meant(request), call, answered=answered)

    async def newest(self) -> "Entry | Background[FinetuneStarted] | None":
        """The newest start: the outcome nobody has asked for yet in this process, or the newest of the journal."""
        self._forget_old_outcomes()
        if self._newest is not None and self._newest in self._sending.values():
            return self._newest.work
        return await self._past.newest()

    def _as_meant(self, request: StartRequest) -> StartRequest:
        """A wanted second start that was made, and whose outcome nobody was told, is asked for, not made once more."""
        return replace(request, allow_duplicate=False) if request.fingerprint in self._never_told else request

    def _forget_old_outcomes(self) -> None:
        """Drop outcomes that nobody asked for in time: the journal tells of them, and the world has gone on."""
        for key, sending in list(self._sending.items()):
            if sending.work.finished_for > _OUTCOME_KEPT_SECONDS:
                del self._sending[key]
                if sending.work.failure is None or isinstance(sending.work.failure, OutcomeUnknownError):
                    self._never_told.add(key)

    def _still_packing(self, request: StartRequest) -> FinetuneStarted:
        return self._sender.report(request).still_packing(self._packing.doing(request.folder))
