//! Any sequence of insertions, removals and look-ups agrees with a table of prefixes.

use std::collections::HashMap;

use wyrmhole_core::allowed_ips::{Key, Trie};

/// Panic if the property does not hold.
pub fn run(data: &[u8]) {
    let mut trie: Trie<u32, u8> = Trie::default();
    let mut model: HashMap<(u32, u8), u8> = HashMap::new();
    for step in data.chunks_exact(6) {
        let length = step[1] % 33;
        let address = u32::from_be_bytes([step[2], step[3], step[4], step[5]]);
        let key = address.mask(length);
        match step[0] % 4 {
            0 => assert_eq!(trie.remove(address, length), model.remove(&(key, length))),
            1 => {
                let found = (0..=32u8).rev().find_map(|length| model.get(&(address.mask(length), length)));
                assert_eq!(trie.lookup(address), found);
            }
            owner => assert_eq!(trie.insert(address, length, owner), model.insert((key, length), owner)),
        }
        assert_eq!(trie.exact(address, length), model.get(&(key, length)));
        assert!(trie.nodes() <= 2 * model.len());
    }
}
