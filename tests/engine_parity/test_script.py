"""Scripts for engines: drawing is repeatable, equal engines give equal traces, and a bug changes a trace."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.engine_parity.script import draw
from tests.engine_parity.script_run import EngineSubject, first_difference, run
from wyrmhole.datapath.outbound import Outbound

SCRIPTS = 60


def test_the_same_seed_draws_the_same_script() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_two_portable_engines_give_equal_traces() -> None:
    for seed in range(SCRIPTS):
        script = draw(seed)
        one, other = run(script, EngineSubject()), run(script, EngineSubject())
        assert first_difference(script, one, other) is None


def test_scripts_reach_most_behaviour_of_an_engine() -> None:
    """Scripts cause sends, writes (also coalesced), each kind of report, and most drop reasons."""
    seen: Counter[str] = Counter()
    for seed in range(SCRIPTS):
        for observed in run(draw(seed), EngineSubject()):
            entries: dict[str, Any] = dict(observed)
            seen["sent"] += len(entries["sent"])
            seen["super frames"] += sum(frame[1] != 0 for frame in entries["written"])
            seen.update(type(report).__name__ for report in entries["reports"])
            seen.update(cause for cause, _ in entries["drops"])
    reports = {"Active", "KeyWanted", "KeyConfirmed", "KeypairsDropped", "Roamed", "HandshakeDatagram"}
    drops = {"malformed_frame", "no_route", "no_endpoint", "bad_tag", "replayed", "bad_source", "not_ip", "bad_mac1"}
    drops |= {"key_expired", "message_limit", "unknown_index", "send_failed", "tun_write_failed", "ecn_unheeded"}
    drops |= {"unexpected_response", "unexpected_cookie"}
    assert seen["sent"] > 1000
    assert not (reports | drops | {"super frames"}) - set(seen)


def test_a_bug_in_one_engine_changes_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: keepalives carry a type of service."""
    right = [run(draw(seed), EngineSubject()) for seed in range(10)]
    original = Outbound._seal_all
    monkeypatch.setattr(
        Outbound,
        "_seal_all",
        lambda self, peer, keypair, packets, tos, counter: original(
            self, peer, keypair, packets, tos if packets != [b""] else 1, counter
        ),
    )
    wrong = [run(draw(seed), EngineSubject()) for seed in range(10)]
    assert any(
        first_difference(draw(seed), one, other) for seed, one, other in zip(range(10), right, wrong, strict=True)
    )
