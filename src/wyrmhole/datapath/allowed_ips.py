"""AllowedIPs: which peer owns an address. A path-compressed binary trie (radix trie) for each family.

A node stands for a prefix. Its two children hold longer prefixes that begin with it, and differ in the first bit after
it. Nodes without a value exist only as forks: they have two children, and are removed when they have fewer. A prefix
has one owner; inserting it again moves it (whitepaper section 2, "cryptokey routing").

The nodes of each owner are also in a dict, so that the cost of removing a peer depends only on its own prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from wyrmhole.wire.prefix import Prefix

T = TypeVar("T")


class _Node(Generic[T]):
    __slots__ = ("left", "length", "network", "parent", "right", "value")

    def __init__(self, network: int, length: int, parent: _Node[T] | None, value: T | None) -> None:
        self.network = network
        self.length = length
        self.parent = parent
        self.value = value
        self.left: _Node[T] | None = None
        self.right: _Node[T] | None = None


class _Trie(Generic[T]):
    """One family; `bits` is 32 or 128."""

    __slots__ = ("bits", "root")

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.root: _Node[T] | None = None

    def lookup(self, address: int) -> T | None:
        bits = self.bits
        node = self.root
        found = None
        while node is not None:
            shift = bits - node.length
            if (address ^ node.network) >> shift:
                break
            if node.value is not None:
                found = node.value
            if not shift:
                break
            node = node.right if address >> (shift - 1) & 1 else node.left
        return found

    def exact(self, network: int, length: int) -> _Node[T] | None:
        node = self.root
        while node is not None and node.length <= length:
            shift = self.bits - node.length
            if (network ^ node.network) >> shift:
                return None
            if node.length == length:
                return node if node.value is not None else None
            node = node.right if network >> (shift - 1) & 1 else node.left
        return None

    def insert(self, network: int, length: int, value: T) -> tuple[_Node[T], T | None]:
        """Insert or replace the value of a prefix. Return its node and the former value."""
        parent, node = self._descend(network, length)
        if node is None:
            leaf = _Node(network, length, parent, value)
            self._attach(parent, None, leaf)
            return leaf, None
        common = self._common_length(node, network, length)
        if common == node.length == length:
            former, node.value = node.value, value
            return node, former
        if common == length:
            above = _Node(network, length, parent, value)
            self._attach(parent, node, above)
            self._adopt(above, node)
            return above, None
        return self._fork(parent, node, common, network, length, value), None

    def remove(self, node: _Node[T]) -> None:
        """Remove the node's value, and the nodes that are no longer forks without it."""
        node.value = None
        current: _Node[T] | None = node
        while current is not None and current.value is None:
            if current.left is not None and current.right is not None:
                return
            child, parent = current.left or current.right, current.parent
            self._replace(parent, current, child)
            current = parent if child is None else None

    def _descend(self, network: int, length: int) -> tuple[_Node[T] | None, _Node[T] | None]:
        """Return the deepest node that is strictly shorter than the prefix and contains it, and its child on that
        side."""
        parent, node = None, self.root
        while node is not None and node.length < length:
            shift = self.bits - node.length
            if (network ^ node.network) >> shift:
                break
            parent, node = node, node.right if network >> (shift - 1) & 1 else node.left
        return parent, node

    def _common_length(self, node: _Node[T], network: int, length: int) -> int:
        different = (node.network ^ network).bit_length()
        return min(node.length, length, self.bits - different)

    def _fork(
        self, parent: _Node[T] | None, node: _Node[T], common: int, network: int, length: int, value: T
    ) -> _Node[T]:
        shift = self.bits - common
        fork: _Node[T] = _Node(network >> shift << shift, common, parent, None)
        leaf = _Node(network, length, fork, value)
        self._attach(parent, node, fork)
        self._adopt(fork, node)
        self._adopt(fork, leaf)
        return leaf

    def _attach(self, parent: _Node[T] | None, replaced: _Node[T] | None, node: _Node[T]) -> None:
        if replaced is not None:
            self._replace(parent, replaced, node)
        elif parent is None:
            self.root = node
        else:
            self._adopt(parent, node)

    def _adopt(self, parent: _Node[T], child: _Node[T]) -> None:
        child.parent = parent
        if child.network >> (self.bits - parent.length - 1) & 1:
            parent.right = child
        else:
            parent.left = child

    def _replace(self, parent: _Node[T] | None, old: _Node[T], new: _Node[T] | None) -> None:
        if parent is None:
            self.root = new
        elif parent.left is old:
            parent.left = new
        else:
            parent.right = new
        if new is not None:
            new.parent = parent


class AllowedIPs(Generic[T]):
    """Prefixes of both families with their owners. Owners are hashable and never None."""

    __slots__ = ("_owned", "_tries", "_v4", "_v6")

    def __init__(self) -> None:
        self._v4: _Trie[T] = _Trie(32)
        self._v6: _Trie[T] = _Trie(128)
        self._tries = {4: self._v4, 6: self._v6}
        self._owned: dict[T, dict[Prefix, _Node[T]]] = {}

    def insert(self, prefix: Prefix, owner: T) -> None:
        """Make `owner` the owner of the prefix, and take it from its former owner. It becomes the last of the owner's
        list."""
        node, former = self._tries[prefix.version].insert(prefix.network, prefix.length, owner)
        if former is not None:
            self._disown(prefix, former)
        self._owned.setdefault(owner, {})[prefix] = node

    def remove(self, prefix: Prefix, owner: T) -> bool:
        """Remove exactly this prefix, if this owner has it. Return whether it was removed."""
        node = self._owned.get(owner, {}).get(prefix)
        if node is None:
            return False
        self._disown(prefix, owner)
        self._tries[prefix.version].remove(node)
        return True

    def remove_owner(self, owner: T) -> None:
        for prefix, node in self._owned.pop(owner, {}).items():
            self._tries[prefix.version].remove(node)

    def lookup(self, address: bytes) -> T | None:
        """Return the owner of the longest prefix that contains the 4- or 16-byte address."""
        trie = self._v4 if len(address) == 4 else self._v6
        return trie.lookup(int.from_bytes(address, "big"))

    def owner(self, prefix: Prefix) -> T | None:
        """Return the owner of exactly this prefix."""
        node = self._tries[prefix.version].exact(prefix.network, prefix.length)
        return None if node is None else node.value

    def prefixes(self, owner: T) -> Iterator[Prefix]:
        """Return the owner's prefixes in order of insertion."""
        return iter(self._owned.get(owner, ()))

    def __len__(self) -> int:
        return sum(map(len, self._owned.values()))

    def _disown(self, prefix: Prefix, owner: T) -> None:
        owned = self._owned[owner]
        del owned[prefix]
        if not owned:
            del self._owned[owner]
