"""Shrink a failing run to fewer steps and to the failing trial, while the same check still fails.

The method is delta debugging (Zeller and Hildebrandt, 2002): leave out chunks of steps, and halve the chunk size when
no chunk can be left out. Every candidate is a whole run, so the number of runs is bounded, and the result may not be
minimal.
"""

from __future__ import annotations

from dataclasses import replace

from wyrmhole.simulation.runs.run import Outcome, Run, carry_out

MAX_RUNS = 300


def shrink(outcome: Outcome, max_runs: int = MAX_RUNS) -> Outcome:
    """Return the smallest failing outcome found. Raises ValueError if the run did not fail."""
    if outcome.violation is None:
        raise ValueError("only a run that failed can be shrunk")
    return _Shrinker(outcome, max_runs).best


class _Shrinker:
    def __init__(self, outcome: Outcome, max_runs: int) -> None:
        assert outcome.violation is not None
        self.best = outcome
        self._check = outcome.violation.check
        self._left = max_runs
        for trials in ((), *((name,) for name in outcome.run.trials or ())):
            if self._fails(replace(outcome.run, trials=trials)):
                break
        self._steps()

    def _fails(self, run: Run) -> bool:
        """Return whether this run fails the same check; if so, keep it as the best."""
        if not self._left:
            return False
        self._left -= 1
        outcome = carry_out(run)
        fails = outcome.violation is not None and outcome.violation.check == self._check
        if fails:
            self.best = outcome
        return fails

    def _steps(self) -> None:
        run = self.best.run
        kept = list(range(len(run.scenario().steps))) if run.keep is None else list(run.keep)
        chunk = max(1, len(kept) // 2)
        while kept and self._left:
            kept, was_cut = self._pass(kept, chunk)
            if not was_cut:
                if chunk == 1:
                    return
                chunk //= 2

    def _pass(self, kept: list[int], chunk: int) -> tuple[list[int], bool]:
        """Try to leave out each chunk once, the last first, because late steps are rarely the cause."""
        was_cut = False
        for start in range((len(kept) - 1) // chunk * chunk, -1, -chunk):
            fewer = kept[:start] + kept[start + chunk :]
            if self._fails(replace(self.best.run, keep=tuple(fewer))):
                kept, was_cut = fewer, True
        return kept, was_cut
