"""Many trials, some at a time, and what came of them in all."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.plan import KINDS, make_pictures, make_plan
from tests.torture.trial import Outcome, run_trial


@dataclass
class Summary:
    """The sums over all trials that were done."""

    seed: int
    trials: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.trials += 1
        self.faults.update(fault.kind for fault in outcome.plan.faults)
        for name in ("starts", "doubles", "lost", "adopted", "released", "tracebacks"):
            self.sums[name] += getattr(outcome, name)
        self.violations += [f"trial {outcome.plan.number} ({outcome.plan.name}): {v}" for v in outcome.violations]

    def __str__(self) -> str:
        faults = ", ".join(f"{kind} {self.faults[kind]}" for kind in KINDS if self.faults[kind])
        return (
            f"torture: {self.trials} trials with seed {self.seed} in {self.seconds:.0f} s\n"
            f"  faults: {faults}\n"
            f"  starts that reached the API {self.sums['starts']}, double starts {self.sums['doubles']}, lost ids "
            f"{self.sums['lost']}, unclear then adopted {self.sums['adopted']}, released {self.sums['released']}, "
            f"tracebacks on stderr {self.sums['tracebacks']}\n"
            f"  violations {len(self.violations)}"
        )


def run_trials(
    numbers: Iterable[int],
    seed: int,
    *,
    jobs: int,
    seconds: float = float("inf"),
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Summary:
    """Run trials until they are done, or no more are begun after so many seconds."""
    began = time.monotonic()
    summary = Summary(seed)
    with tempfile.TemporaryDirectory(prefix="bfl-mcp-torture-") as work:
        pool = make_pictures(Path(work) / "pool")

        def run(number: int) -> Outcome:
            folder = Path(work) / f"trial-{number}"
            outcome = run_trial(make_plan(seed, number, pool), folder)
            shutil.rmtree(folder, ignore_errors=True)
            return outcome

        with ThreadPoolExecutor(jobs) as workers:
            due = iter(numbers)
            running = {workers.submit(run, number) for number in _take(due, jobs)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    _tell(future, summary, on_outcome)
                if time.monotonic() - began < seconds:
                    running |= {workers.submit(run, number) for number in _take(due, len(done))}
    summary.seconds = time.monotonic() - began
    return summary


def describe(outcome: Outcome) -> str:
    """A trial that broke a promise, with the whole conversation."""
    plan = outcome.plan
    head = f"trial {plan.number} of seed {plan.seed}: {plan.name}"
    again = f"again alone: python -m tests.torture --seed {plan.seed} --trial {plan.number}"
    lines = [line if len(line) < 1500 else line[:1500] + " …" for line in outcome.conversation]
    return "\n".join([f"=== {head}", *(f"  !! {v}" for v in outcome.violations), f"  {again}", *lines, ""])


def _tell(future: Future[Outcome], summary: Summary, on_outcome: Callable[[Outcome], None]) -> None:
    outcome = future.result()
    summary.add(outcome)
    on_outcome(outcome)


def _take(due: Iterator[int], count: int) -> list[int]:
    return [number for _, number in zip(range(count), due, strict=False)]
