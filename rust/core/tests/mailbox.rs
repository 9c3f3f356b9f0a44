//! Waiting for an order ends when that order was carried out, also if several threads post orders.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use wyrmhole_core::mailbox::Mailbox;

#[test]
fn an_order_posted_while_another_is_carried_out_has_its_own_number() {
    let mailbox = Mailbox::default();
    let first = mailbox.post("first");
    assert_eq!(mailbox.take(), Some("first"));
    let second = mailbox.post("second");
    assert!(second > first);
    mailbox.carried_out();
    mailbox.wait(first);

    let (done, waited) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            mailbox.wait(second);
            done.send(()).unwrap();
        });
        assert_eq!(mailbox.take(), Some("second"));
        assert!(waited.try_recv().is_err());
        mailbox.carried_out();
        waited.recv().unwrap();
    });
}

/// Each poster's order raises its own counter; after `wait` it must see that.
#[test]
fn two_posting_threads_each_find_their_orders_done() {
    const ORDERS: u64 = 2_000;
    let mailbox = Arc::new(Mailbox::<Arc<AtomicU64>>::default());
    let posters: Vec<_> = (0..2)
        .map(|_| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || {
                let mine = Arc::new(AtomicU64::new(0));
                for number in 1..=ORDERS {
                    mailbox.wait(mailbox.post(Arc::clone(&mine)));
                    assert_eq!(mine.load(Ordering::SeqCst), number);
                }
            })
        })
        .collect();
    let mut left = 2 * ORDERS;
    while left > 0 && posters.iter().any(|poster| !poster.is_finished()) {
        if let Some(counter) = mailbox.take() {
            counter.fetch_add(1, Ordering::SeqCst);
            mailbox.carried_out();
            left -= 1;
        } else {
            thread::yield_now();
        }
    }
    mailbox.close();
    posters.into_iter().for_each(|poster| poster.join().unwrap());
}

#[test]
fn a_closed_mailbox_drops_orders_and_ends_waits() {
    let mailbox = Mailbox::default();
    let kept = Arc::new(());
    let before = mailbox.post(Arc::clone(&kept));
    mailbox.close();
    let after = mailbox.post(Arc::clone(&kept));
    mailbox.wait(before);
    mailbox.wait(after);
    assert!(mailbox.take().is_none());
    assert_eq!(Arc::strong_count(&kept), 1);
}
