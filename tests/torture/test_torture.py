"""The promise about money, proved by making everything go wrong; python -m tests.torture runs more."""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("fills the disk of a running process with prlimit, which is Linux", allow_module_level=True)

from tests.torture.campaign import describe, run_trials
from tests.torture.trial import Outcome

_SEED = 3
_TRIALS = 300
_SECONDS = 300


@pytest.mark.timeout(420)
def test_no_start_is_doubled_or_lost_whatever_goes_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """No two starts for one key, no finetune lost, no answer that claims too much, no corrupt journal."""
    broken: list[Outcome] = []

    def keep(outcome: Outcome) -> None:
        if outcome.violations:
            broken.append(outcome)

    summary = run_trials(range(_TRIALS), _SEED, jobs=3, seconds=_SECONDS, on_outcome=keep)

    with capsys.disabled():
        sys.stdout.write(f"\n{summary}\n")
    assert not summary.violations, "\n".join([*summary.violations, *map(describe, broken[:5])])
    assert summary.trials >= 100
