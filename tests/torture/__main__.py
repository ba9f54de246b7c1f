"""python -m tests.torture --trials N --seed S: more trials than the tests run; --trial K runs one alone."""

import argparse
import sys

from tests.torture.campaign import describe, run_trials
from tests.torture.trial import Outcome


def main() -> int:
    """Run and print; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--trials", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--trial", type=int, metavar="K", help="only this one, with its whole conversation")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="trials at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="T", help="begin none after so long")
    chosen = parser.parse_args()
    done = 0

    def show(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        if outcome.violations or chosen.trial is not None:
            _print(describe(outcome))
        elif done % 25 == 0:
            _print(f"{done} trials")

    numbers = range(chosen.trials) if chosen.trial is None else [chosen.trial]
    summary = run_trials(numbers, chosen.seed, jobs=chosen.jobs, seconds=chosen.seconds, on_outcome=show)
    _print("\n".join([*summary.violations, str(summary)]))
    return 1 if summary.violations else 0


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
