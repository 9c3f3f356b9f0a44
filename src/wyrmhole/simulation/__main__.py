"""`python -m wyrmhole.simulation`: run seeds, print what fails with the line that repeats it, and cut it down."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from wyrmhole.device.clock import SystemClock
from wyrmhole.simulation.runs.liveness import TRIALS, trial_named
from wyrmhole.simulation.runs.run import Outcome, Run, carry_out
from wyrmhole.simulation.runs.shrink import shrink
from wyrmhole.simulation.world.scenario import MAX_HOSTS, PROFILES

SOAK_CALM_HOURS = 24.0
SOAK_STORM_HOURS = 0.1
"""A soak takes two runs of each seed: a day in which little happens, and six minutes in which everything does."""
PROGRESS_EVERY = 50
SECONDS = 1e-9


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    started = SystemClock().boottime()
    if options.soak:
        outcomes = _until(options.soak, _carry_out_all(_soak_runs(options.seed), options.jobs))
    else:
        seeds = range(options.seed, options.seed + options.runs)
        outcomes = _carry_out_all((_run_of(options, seed) for seed in seeds), options.jobs)
    counts: Counter[str] = Counter()
    peer_hours, runs, failed, hours = 0.0, 0, 0, 0.0
    for outcome in outcomes:
        counts += outcome.counts
        peer_hours += outcome.peer_hours
        hours += outcome.run.hours
        runs += 1
        if options.soak and runs % PROGRESS_EVERY == 0:
            print(f"{runs} runs, {peer_hours:,.0f} peer-hours, {failed} violations", file=sys.stderr, flush=True)
        if outcome.violation is not None:
            failed += 1
            _tell(outcome, options.shrink)
        elif options.runs == 1 and not options.soak:
            print(f"trace {outcome.digest}")
    elapsed = (SystemClock().boottime() - started) * SECONDS
    print(f"{runs} runs from seed {options.seed}, {peer_hours:,.1f} peer-hours, {failed} violations")
    print(
        f"{elapsed:.1f} s, {hours * 3600 / elapsed:,.0f} x real time, {peer_hours * 3600 / elapsed:,.0f} x for a peer"
    )
    print(", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wyrmhole.simulation",
        description="Simulated hosts under faults in virtual time; every invariant of docs/reliability.md is checked.",
    )
    parser.add_argument("--seed", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--runs", type=int, default=1, help="how many seeds, counting up (1)")
    parser.add_argument("--hours", type=float, default=1.0, help="virtual hours of each run (1)")
    parser.add_argument(
        "--hosts", type=int, choices=range(2, MAX_HOSTS + 1), metavar="2..16", help="drawn if not given"
    )
    parser.add_argument("--profile", choices=sorted(PROFILES), default="storm", help="how much happens (storm)")
    parser.add_argument("--keep", type=_numbers, metavar="N,N,...", help="only these steps of the scenario, or none")
    parser.add_argument(
        "--trials",
        type=_names,
        metavar="NAME,...",
        help=f"by name or code, or none; drawn if not given: {', '.join(_trial_texts())}",
    )
    parser.add_argument(
        "--fail-edge", type=_edge, metavar="N:WAY", help="this call of a TUN or socket fails, in this way"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--soak", type=float, metavar="PEER-HOURS", help="seeds until there are so many peer-hours")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="do not cut failing scenarios down")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(word) for word in text.split(","))


def _edge(text: str) -> tuple[int, int]:
    number, _, way = text.partition(":")
    return int(number), int(way or 0)


def _names(text: str) -> tuple[str, ...]:
    found = []
    for word in () if text == "none" else text.split(","):
        name = trial_named(word)
        if name is None:
            raise argparse.ArgumentTypeError(f"unknown trial {word}: choose from {', '.join(_trial_texts())}")
        found.append(name)
    return tuple(found)


def _trial_texts() -> list[str]:
    return [f"{trial.name} ({trial.code})" for trial in TRIALS.values()]


def _run_of(options: argparse.Namespace, seed: int) -> Run:
    return Run(seed, options.hours, options.profile, options.hosts, options.keep, options.trials, options.fail_edge)


def _soak_runs(first: int) -> Iterator[Run]:
    for seed in itertools.count(first):
        yield Run(seed, SOAK_CALM_HOURS, "calm")
        yield Run(seed, SOAK_STORM_HOURS, "storm")


def _until(peer_hours: float, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    done = 0.0
    for outcome in outcomes:
        yield outcome
        done += outcome.peer_hours
        if done >= peer_hours:
            return


def _carry_out_all(runs: Iterator[Run], jobs: int) -> Iterator[Outcome]:
    """Outcomes in the order of the runs, or as they come with several processes."""
    if jobs == 1:
        yield from map(carry_out, runs)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting: set[Future[Outcome]] = {pool.submit(carry_out, run) for run in itertools.islice(runs, 2 * jobs)}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                waiting |= {pool.submit(carry_out, run) for run in itertools.islice(runs, len(done))}
                yield from (future.result() for future in done)
        finally:
            for future in waiting:
                future.cancel()


def _tell(outcome: Outcome, wants_less: bool) -> None:
    print(f"{outcome.violation}\n  {outcome.run.line()}", flush=True)
    if wants_less:
        least = shrink(outcome)
        print(f"  cut down to {len(least.run.scenario().steps)} steps: {least.run.line()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
