//! Tables with one peer, number 1, that owns 10.0.0.0/8, and packets for it.

use std::net::SocketAddr;

use wyrmhole_core::aead::Aead;
use wyrmhole_core::allowed_ips::Prefix;
use wyrmhole_core::edges::Turn;
use wyrmhole_core::ip::Address;
use wyrmhole_core::keypair::KeypairParams;
use wyrmhole_core::tables::Tables;

/// Create tables whose peer has an endpoint but no keypair yet.
pub fn without_key(aead: Box<dyn Aead>) -> Tables {
    let tables = Tables::new(aead);
    tables.set_mac1_key(Some([1; 32]));
    tables.add_peer(1);
    tables.insert_allowed_ip(1, Prefix { address: Address::V4(0x0A00_0000), length: 8 });
    tables.with_peer(1, |_, state| state.endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 51820))));
    tables
}

/// Parameters of a keypair that never expires.
pub fn params(index: u32, other: u32, is_initiator: bool) -> KeypairParams {
    KeypairParams {
        local_index: index,
        remote_index: other,
        is_initiator,
        rekey_send_at: u64::MAX,
        rekey_receive_at: u64::MAX,
        reject_at: u64::MAX,
        send_until: u64::MAX,
        rekey_after_messages: 1 << 60,
        reject_after_messages: u64::MAX - 8192,
    }
}

/// A turn at time 5.
pub fn turn<'a, E>(tables: &'a Tables, edges: &'a mut E) -> Turn<'a, E> {
    Turn { tables, edges, now: 5 }
}

/// Create a virtio header and a UDP packet or super-packet with `payload` bytes of payload.
pub fn frame(payload: usize, gso_size: u16) -> Vec<u8> {
    let mut frame = vec![0; 10 + 28 + payload];
    if gso_size > 0 {
        frame[0] = 1;
        frame[1] = 5;
        frame[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        frame[6..8].copy_from_slice(&20u16.to_ne_bytes());
        frame[8..10].copy_from_slice(&6u16.to_ne_bytes());
    }
    let length = (28 + payload) as u16;
    frame[10..20].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0x40, 0, 64, 17]);
    frame[22..30].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[30..36].copy_from_slice(&[0, 1, 0, 2, ((8 + payload) >> 8) as u8, (8 + payload) as u8]);
    frame
}
