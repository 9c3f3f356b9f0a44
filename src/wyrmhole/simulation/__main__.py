"""`python -m wyrmhole.simulation`: run seeds, print each failure with the command that repeats it, and shrink it."""

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
"""A soak makes two runs of each seed: 24 quiet hours and six minutes of constant faults."""
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
            _report(outcome, wants_shrinking=options.shrink)
        elif options.runs == 1 and not options.soak:
            print(f"trace {outcome.digest}")
    elapsed = (SystemClock().boottime() - started) * SECONDS
    print(f"{runs} runs from seed {options.seed}, {peer_hours:,.1f} peer-hours, {failed} violations")
    print(
        f"{elapsed:.1f} s, {hours * 3600 / elapsed:,.0f} x real time, {peer_hours * 3600 / elapsed:,.0f} x for a peer"
    )
    print(", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())))
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wyrmhole.simulation",
        description="Simulate hosts under faults in virtual time and check every invariant of docs/reliability.md.",
    )
    parser.add_argument("--seed", type=int, default=1, help="first seed (default 1)")
    parser.add_argument("--runs", type=int, default=1, help="number of consecutive seeds (default 1)")
    parser.add_argument("--hours", type=float, default=1.0, help="virtual hours of each run (default 1)")
    parser.add_argument(
        "--hosts",
        type=int,
        choices=range(2, MAX_HOSTS + 1),
        metavar="2..16",
        help="number of hosts; drawn from the seed by default",
    )
    parser.add_argument(
        "--profile", choices=sorted(PROFILES), default="storm", help="how many faults happen (default storm)"
    )
    parser.add_argument(
        "--keep", type=_numbers, metavar="N,N,...", help="run only these steps of the scenario, or none"
    )
    parser.add_argument(
        "--trials",
        type=_names,
        metavar="NAME,...",
        help=f"trials by name or code, or none; drawn from the seed by default: {', '.join(_trial_texts())}",
    )
    parser.add_argument(
        "--fail-edge", type=_edge, metavar="N:MODE", help="let call N of a TUN or socket fail, in failure mode MODE"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default 1)")
    parser.add_argument(
        "--soak", type=float, metavar="PEER-HOURS", help="run seeds until this many peer-hours are done"
    )
    parser.add_argument("--no-shrink", dest="shrink", action="store_false", help="do not shrink failing scenarios")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(word) for word in text.split(","))


def _edge(text: str) -> tuple[int, int]:
    number, _, mode = text.partition(":")
    return int(number), int(mode or 0)


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
    """Yield outcomes in the order of the runs, or, with several processes, in the order in which they finish."""
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


def _report(outcome: Outcome, *, wants_shrinking: bool) -> None:
    print(f"{outcome.violation}\n  {outcome.run.line()}", flush=True)
    if wants_shrinking:
        least = shrink(outcome)
        print(f"  shrunk to {len(least.run.scenario().steps)} steps: {least.run.line()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
