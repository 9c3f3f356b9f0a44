//! Twin: wyrmhole/datapath/allowed_ips.py.
//!
//! AllowedIPs: which peer owns an address. A path-compressed binary trie for each family.
//!
//! A node stands for a prefix. Its children hold longer prefixes that begin with it, and differ in the first bit after
//! it. Nodes without an owner exist only as forks. Nodes are in one vector and refer to each other by number, so that a
//! hundred thousand of them are one allocation. A prefix has one owner; inserting it again moves it (whitepaper 2).

use crate::ip::Address;

const NIL: u32 = u32::MAX;

/// An address as a number: u32 or u128.
pub trait Key: Copy + Eq {
    /// The number of bits of an address.
    const BITS: u8;
    /// The length of the common prefix of two keys.
    fn common(self, other: Self) -> u8;
    /// Bit number `at`, counted from the most significant one.
    fn bit(self, at: u8) -> bool;
    /// The first `length` bits, followed by zeros.
    fn mask(self, length: u8) -> Self;
}

macro_rules! key {
    ($number:ty, $bits:literal) => {
        impl Key for $number {
            const BITS: u8 = $bits;
            fn common(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }
            fn bit(self, at: u8) -> bool {
                self >> ($bits - 1 - at) & 1 == 1
            }
            fn mask(self, length: u8) -> Self {
                if length == 0 { 0 } else { self >> ($bits - length) << ($bits - length) }
            }
        }
    };
}
key!(u32, 32);
key!(u128, 128);

struct Node<K, V> {
    key: K,
    length: u8,
    owner: Option<V>,
    children: [u32; 2],
}

/// The reference to a node: the root, or the left or right child of another node.
#[derive(Clone, Copy)]
enum Link {
    Root,
    Child(u32, usize),
}

/// One family's prefixes.
pub struct Trie<K, V> {
    nodes: Vec<Node<K, V>>,
    free: Vec<u32>,
    root: u32,
}

impl<K, V> Default for Trie<K, V> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NIL }
    }
}

impl<K: Key, V> Trie<K, V> {
    /// The owner of the longest prefix that contains the address.
    pub fn lookup(&self, address: K) -> Option<&V> {
        let mut found = None;
        let mut at = self.root;
        while at != NIL {
            let node = &self.nodes[at as usize];
            if node.key.common(address) < node.length {
                break;
            }
            found = node.owner.as_ref().or(found);
            if node.length == K::BITS {
                break;
            }
            at = node.children[usize::from(address.bit(node.length))];
        }
        found
    }

    /// Make `owner` the owner of the prefix. Returns the former owner. Bits beyond the length are ignored.
    pub fn insert(&mut self, key: K, length: u8, owner: V) -> Option<V> {
        let key = key.mask(length);
        let mut link = Link::Root;
        loop {
            let at = self.get(link);
            if at == NIL {
                let leaf = self.make(key, length, Some(owner));
                self.set(link, leaf);
                return None;
            }
            let node = &mut self.nodes[at as usize];
            let common = node.key.common(key).min(node.length).min(length);
            if common == node.length {
                if node.length == length {
                    return node.owner.replace(owner);
                }
                link = Link::Child(at, usize::from(key.bit(common)));
                continue;
            }
            let side = usize::from(node.key.bit(common));
            let above = if common == length {
                self.make(key, length, Some(owner))
            } else {
                let leaf = self.make(key, length, Some(owner));
                let fork = self.make(key.mask(common), common, None);
                self.nodes[fork as usize].children[1 - side] = leaf;
                fork
            };
            self.nodes[above as usize].children[side] = at;
            self.set(link, above);
            return None;
        }
    }

    /// The owner of exactly this prefix.
    pub fn exact(&self, key: K, length: u8) -> Option<&V> {
        let (at, _, _) = self.find(key.mask(length), length)?;
        self.nodes[at as usize].owner.as_ref()
    }

    /// Remove exactly this prefix, and the nodes that are no longer forks without it. Returns the former owner.
    pub fn remove(&mut self, key: K, length: u8) -> Option<V> {
        let (at, link, parent_link) = self.find(key.mask(length), length)?;
        let owner = self.nodes[at as usize].owner.take()?;
        self.collapse(at, link);
        if let Link::Child(parent, _) = link {
            if self.nodes[parent as usize].owner.is_none() {
                self.collapse(parent, parent_link);
            }
        }
        Some(owner)
    }

    /// The number of nodes, forks included.
    pub fn nodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Replace a node without owner by its child, if it has fewer than two.
    fn collapse(&mut self, at: u32, link: Link) {
        let [left, right] = self.nodes[at as usize].children;
        if left != NIL && right != NIL {
            return;
        }
        self.set(link, if left == NIL { right } else { left });
        self.free.push(at);
    }

    /// Find a node. Returns its number, its link, and its parent's link.
    fn find(&self, key: K, length: u8) -> Option<(u32, Link, Link)> {
        let (mut parent_link, mut link) = (Link::Root, Link::Root);
        loop {
            let at = self.get(link);
            let node = self.nodes.get(at as usize)?;
            if node.length > length || node.key.common(key) < node.length {
                return None;
            }
            if node.length == length {
                return Some((at, link, parent_link));
            }
            parent_link = link;
            link = Link::Child(at, usize::from(key.bit(node.length)));
        }
    }

    fn get(&self, link: Link) -> u32 {
        match link {
            Link::Root => self.root,
            Link::Child(parent, side) => self.nodes[parent as usize].children[side],
        }
    }

    fn set(&mut self, link: Link, at: u32) {
        match link {
            Link::Root => self.root = at,
            Link::Child(parent, side) => self.nodes[parent as usize].children[side] = at,
        }
    }

    fn make(&mut self, key: K, length: u8, owner: Option<V>) -> u32 {
        let node = Node { key, length, owner, children: [NIL, NIL] };
        if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            return at;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }
}

/// A prefix: an address, and the number of its leading bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The network address.
    pub address: Address,
    /// The length in bits: 0 to 32, or 0 to 128.
    pub length: u8,
}

/// The prefixes of both families with their owners.
pub struct AllowedIps<V> {
    v4: Trie<u32, V>,
    v6: Trie<u128, V>,
}

impl<V> Default for AllowedIps<V> {
    fn default() -> Self {
        Self { v4: Trie::default(), v6: Trie::default() }
    }
}

impl<V> AllowedIps<V> {
    /// The owner of the longest prefix that contains the address.
    pub fn lookup(&self, address: Address) -> Option<&V> {
        match address {
            Address::V4(address) => self.v4.lookup(address),
            Address::V6(address) => self.v6.lookup(address),
        }
    }

    /// Make `owner` the owner of the prefix. Returns the former owner.
    pub fn insert(&mut self, prefix: Prefix, owner: V) -> Option<V> {
        match prefix.address {
            Address::V4(key) => self.v4.insert(key, prefix.length.min(32), owner),
            Address::V6(key) => self.v6.insert(key, prefix.length.min(128), owner),
        }
    }

    /// The owner of exactly this prefix.
    pub fn exact(&self, prefix: Prefix) -> Option<&V> {
        match prefix.address {
            Address::V4(key) => self.v4.exact(key, prefix.length.min(32)),
            Address::V6(key) => self.v6.exact(key, prefix.length.min(128)),
        }
    }

    /// Remove exactly this prefix. Returns the former owner.
    pub fn remove(&mut self, prefix: Prefix) -> Option<V> {
        match prefix.address {
            Address::V4(key) => self.v4.remove(key, prefix.length.min(32)),
            Address::V6(key) => self.v6.remove(key, prefix.length.min(128)),
        }
    }

    /// The number of nodes, forks included.
    pub fn nodes(&self) -> usize {
        self.v4.nodes() + self.v6.nodes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A small generator (splitmix64), so that the test needs no crate and is reproducible.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ z >> 31
        }
    }

    #[test]
    fn random_operations_agree_with_a_table_of_all_prefixes() {
        for seed in 0..20 {
            let mut random = Random(seed);
            let mut trie: Trie<u32, u64> = Trie::default();
            let mut model: HashMap<(u32, u8), u64> = HashMap::new();
            for _ in 0..2000 {
                let length = (random.next() % 33) as u8;
                // Few bits vary, so that prefixes overlap.
                let key = ((random.next() as u32) & 0xC0C0_C003).mask(length);
                if random.next() % 3 == 0 {
                    assert_eq!(trie.remove(key, length), model.remove(&(key, length)));
                } else {
                    let owner = random.next() % 7;
                    assert_eq!(trie.insert(key, length, owner), model.insert((key, length), owner));
                }
                assert!(trie.nodes() <= 2 * model.len().max(1), "more forks than prefixes");
                let address = (random.next() as u32) & 0xC0C0_C003;
                let expected = (0..=32u8).rev().find_map(|length| model.get(&(address.mask(length), length)));
                assert_eq!(trie.lookup(address), expected);
                assert_eq!(trie.exact(key, length), model.get(&(key, length)));
            }
            for (key, length) in model.keys() {
                trie.remove(*key, *length);
            }
            assert_eq!(trie.nodes(), 0, "an empty table has nodes");
        }
    }

    #[test]
    fn an_ipv6_host_precedes_the_default_route() {
        let mut table = AllowedIps::default();
        let host = Address::V6(0x2001_0db8 << 96 | 1);
        table.insert(Prefix { address: Address::V6(0), length: 0 }, "all");
        table.insert(Prefix { address: host, length: 128 }, "one");
        assert_eq!(table.lookup(host), Some(&"one"));
        assert_eq!(table.lookup(Address::V6(2)), Some(&"all"));
        assert_eq!(table.lookup(Address::V4(2)), None);
    }
}
