"""The trie, compared with a linear search of a list."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from tests.support.naive_table import NaiveTable
from wyrmhole.datapath.allowed_ips import AllowedIPs
from wyrmhole.wire.prefix import Prefix


def _prefix(version: int, address: int, length: int) -> Prefix:
    bits = 32 if version == 4 else 128
    length = min(length, bits)
    return Prefix(version, (address & ((1 << bits) - 1)) >> (bits - length) << (bits - length), length)


# The top bits take few values, so that prefixes often nest and collide.
addresses = st.one_of(
    st.integers(0, 7).map(lambda n: n << 29),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 3).map(lambda n: (n << 126) | n),
    st.integers(0, (1 << 128) - 1),
)
prefixes = st.builds(_prefix, st.sampled_from([4, 6]), addresses, st.integers(0, 12) | st.integers(0, 128))
owners = st.sampled_from("abc")
operations = st.one_of(
    st.tuples(st.just("insert"), prefixes, owners),
    st.tuples(st.just("remove"), prefixes, owners),
    st.tuples(st.just("remove_owner"), prefixes, owners),
)


@given(st.lists(operations, max_size=40), st.lists(addresses, min_size=1, max_size=10))
def test_the_trie_equals_a_naive_list_after_any_operations(
    script: list[tuple[str, Prefix, str]], probes: list[int]
) -> None:
    table: AllowedIPs[str] = AllowedIPs()
    naive = NaiveTable()
    for operation, prefix, owner in script:
        if operation == "insert":
            table.insert(prefix, owner)
            naive.entries.pop(prefix, None)
            naive.entries[prefix] = owner
        elif operation == "remove":
            had = naive.entries.get(prefix) == owner
            assert table.remove(prefix, owner) is had
            if had:
                del naive.entries[prefix]
        else:
            table.remove_owner(owner)
            naive.entries = {kept: by for kept, by in naive.entries.items() if by != owner}
        assert len(table) == len(naive.entries)
    for owner in "abc":
        assert list(table.prefixes(owner)) == [prefix for prefix, by in naive.entries.items() if by == owner]
    for prefix, owner in naive.entries.items():
        assert table.owner(prefix) == owner
    for probe in [*probes, *(prefix.network for prefix in naive.entries)]:
        v4, v6 = probe & 0xFFFFFFFF, probe
        assert table.lookup(v4.to_bytes(4, "big")) == naive.lookup(4, v4)
        assert table.lookup(v6.to_bytes(16, "big")) == naive.lookup(6, v6)


def _address(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def test_the_longest_match_wins_across_peers() -> None:
    """A /32 inside another peer's /24 belongs to its own peer (M45)."""
    table: AllowedIPs[str] = AllowedIPs()
    table.insert(Prefix.parse("10.0.0.0/24"), "a")
    table.insert(Prefix.parse("10.0.0.7/32"), "b")
    assert table.lookup(_address("10.0.0.6")) == "a"
    assert table.lookup(_address("10.0.0.7")) == "b"


def test_a_default_route_matches_only_its_own_family() -> None:
    table: AllowedIPs[str] = AllowedIPs()
    table.insert(Prefix.parse("0.0.0.0/0"), "a")
    assert table.lookup(_address("192.0.2.1")) == "a"
    assert table.lookup(_address("2001:db8::1")) is None


def test_inserting_a_prefix_again_moves_it_to_the_new_peer() -> None:
    table: AllowedIPs[str] = AllowedIPs()
    table.insert(Prefix.parse("10.0.0.0/8"), "a")
    table.insert(Prefix.parse("10.0.0.0/8"), "b")
    assert list(table.prefixes("a")) == []
    assert table.lookup(_address("10.1.1.1")) == "b"
    assert not table.remove(Prefix.parse("10.0.0.0/8"), "a")


def test_removed_peers_leave_no_nodes_behind() -> None:
    table: AllowedIPs[str] = AllowedIPs()
    for number in range(64):
        table.insert(Prefix(4, number << 8, 24), "a" if number % 2 else "b")
    table.remove_owner("a")
    table.remove_owner("b")
    assert table._v4.root is None
    assert len(table) == 0
