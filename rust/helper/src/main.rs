//! The helper of a namespace stack: the twin of `wyrmhole/library/stacks/netns_helper.py`, which documents the protocol.
//! It starts faster, because it needs no interpreter.
//!
//! Usage: `netns_helper CHANNEL [USER_NAMESPACE NETWORK_NAMESPACE]`. All arguments are inherited descriptors.

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod sys;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

const STAGE_UNSHARE: u32 = 0;
const STAGE_SETNS: u32 = 1;
const STAGE_OPEN: u32 = 2;
/// The size of a request: number, count, family, kind and protocol.
const REQUEST_BYTES: usize = 20;
/// The most descriptors that the kernel passes with one message (`SCM_MAX_FD`).
const MAX_COUNT: usize = sys::MAX_DESCRIPTORS;

fn main() -> ExitCode {
    let arguments: Option<Vec<RawFd>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    match arguments.as_deref() {
        Some([channel]) => begin(*channel, STAGE_UNSHARE, || {
            sys::unshare().map_err(|errno| (errno, STAGE_UNSHARE))?;
            sys::open_tun().map(|tun| vec![tun]).map_err(|errno| (errno, STAGE_OPEN))
        }),
        Some([channel, user, network]) => begin(*channel, STAGE_SETNS, || {
            // Only the user namespace gives the right to enter the network namespace.
            sys::enter(*user, *network).map(|()| Vec::new()).map_err(|errno| (errno, STAGE_SETNS))
        }),
        _ => {
            eprintln!("netns_helper: invalid arguments: expected descriptors (only wyrmhole starts this program)");
            ExitCode::from(2)
        }
    }
}

fn begin(channel: RawFd, stage: u32, enter: impl FnOnce() -> Result<Vec<OwnedFd>, (i32, u32)>) -> ExitCode {
    match enter() {
        Ok(passed) => {
            if let Err(errno) = give(channel, 0, &passed) {
                answer(channel, 0, errno, stage);
                return ExitCode::FAILURE;
            }
            drop(passed);
            answer(channel, 0, 0, 0);
            serve(channel);
            ExitCode::SUCCESS
        }
        Err((errno, stage)) => {
            answer(channel, 0, errno, stage);
            ExitCode::FAILURE
        }
    }
}

/// Answers requests until the parent closes its end of the channel.
fn serve(channel: RawFd) {
    let mut request = [0; REQUEST_BYTES];
    while sys::receive(channel, &mut request) == REQUEST_BYTES {
        let word = |at: usize| i32::from_ne_bytes([request[at], request[at + 1], request[at + 2], request[at + 3]]);
        let count = usize::try_from(word(4)).unwrap_or(0);
        let made = make(count, word(8), word(12), word(16));
        let given = made.and_then(|made| give(channel, word(0) as u32, &made));
        // The copies here are closed before the reply: while they are open, a socket that the parent closes does not end.
        answer(channel, word(0) as u32, given.err().unwrap_or(0), 0);
    }
}

fn make(count: usize, family: i32, kind: i32, protocol: i32) -> Result<Vec<OwnedFd>, i32> {
    if count > MAX_COUNT {
        return Err(libc::EINVAL);
    }
    (0..count).map(|_| sys::socket(family, kind, protocol)).collect()
}

fn give(channel: RawFd, number: u32, descriptors: &[OwnedFd]) -> Result<(), i32> {
    if descriptors.is_empty() {
        return Ok(());
    }
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    sys::send(channel, &reply(number, 0, 0), &numbers)
}

fn answer(channel: RawFd, number: u32, errno: i32, stage: u32) {
    // A parent that has exited needs no answer; the next receive then ends the loop.
    let _ = sys::send(channel, &reply(number, errno, stage), &[]);
}

fn reply(number: u32, errno: i32, stage: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&number.to_ne_bytes());
    bytes[4..8].copy_from_slice(&errno.to_ne_bytes());
    bytes[8..].copy_from_slice(&stage.to_ne_bytes());
    bytes
}
