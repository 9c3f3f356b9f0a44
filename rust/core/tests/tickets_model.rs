//! Every interleaving of a few threads with a few tickets, by loom, which also lets loads return old values where the
//! memory model allows it. The file under test is included over loom's locks and atomics, so this needs no build of its
//! own. Two planted races show that the model would find one.

// Twice on purpose: as it is, and with a planted race.
#![allow(clippy::duplicate_mod)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::sync::Arc;
use loom::thread;

use sync::{AtomicUsize, Mutex, Ordering};
use tickets::{Crew, Tickets};

mod planted;
mod sync {
    pub use std::sync::PoisonError;

    pub use loom::sync::atomic::{AtomicUsize, Ordering, fence};
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
}
#[path = "../src/tickets.rs"]
#[allow(dead_code, missing_docs)]
mod tickets;

const OWNER: usize = 0;
const HELPER: usize = 1;

type Log = Arc<Mutex<Vec<usize>>>;

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Two switches where nothing forces one find what more would: the whole is then tried in seconds.
    builder.preemption_bound = Some(2);
    builder.check(test);
}

/// As a worker delivers.
fn deliver(tickets: &Tickets<usize>, log: &Log) {
    while let Some(delivery) = tickets.deliver() {
        let work = delivery.unwrap_or(usize::MAX);
        log.lock().unwrap().push(work);
    }
}

fn help(tickets: &Tickets<usize>, log: &Log) {
    while let Some(taken) = tickets.take() {
        taken.finish();
        deliver(tickets, log);
    }
}

/// As the owner does before it gives up its edges.
fn finish(tickets: &Tickets<usize>, log: &Log) {
    help(tickets, log);
    while !tickets.wait_idle() {
        deliver(tickets, log);
    }
}

#[test]
fn tickets_are_delivered_once_and_in_order_and_the_owner_waits_for_all() {
    model(|| {
        let (tickets, log) = (Arc::new(Tickets::new(3)), Log::default());
        let (theirs, its_log) = (Arc::clone(&tickets), Arc::clone(&log));
        tickets.post(0);
        let helper = thread::spawn(move || help(&theirs, &its_log));
        tickets.post(1);
        tickets.draw(2).finish();
        deliver(&tickets, &log);
        finish(&tickets, &log);
        assert!(tickets.is_idle());
        assert_eq!(*log.lock().unwrap(), [0, 1, 2]);
        helper.join().unwrap();
    });
}

#[test]
fn two_helpers_and_no_owner_leave_nothing_behind() {
    model(|| {
        let (tickets, log) = (Arc::new(Tickets::new(3)), Log::default());
        for work in 0..2 {
            tickets.post(work);
        }
        let help_apart = || {
            let (theirs, its_log) = (Arc::clone(&tickets), Arc::clone(&log));
            thread::spawn(move || help(&theirs, &its_log))
        };
        let helpers = [help_apart(), help_apart()];
        helpers.into_iter().for_each(|helper| helper.join().unwrap());
        assert!(tickets.is_idle());
        assert_eq!(*log.lock().unwrap(), [0, 1]);
    });
}

#[test]
fn a_ticket_that_is_lost_keeps_nobody_waiting() {
    model(|| {
        let (tickets, log) = (Arc::new(Tickets::new(3)), Log::default());
        let (theirs, its_log) = (Arc::clone(&tickets), Arc::clone(&log));
        for work in 0..2 {
            tickets.post(tickets.spare(|| work).unwrap());
        }
        let helper = thread::spawn(move || {
            drop(theirs.take());
            deliver(&theirs, &its_log);
        });
        finish(&tickets, &log);
        assert!(tickets.is_idle());
        assert_eq!(log.lock().unwrap().len(), 2);
        assert!(tickets.has_spare());
        helper.join().unwrap();
    });
}

/// An owner posts while a helper goes to sleep: it must not sleep beside a ticket without being woken.
macro_rules! hand_over {
    ($tickets:path, $crew:path) => {
        || {
            let (tickets, crew) = (Arc::new(<$tickets>::new(2)), Arc::new(<$crew>::new(2)));
            let (theirs, its_crew) = (Arc::clone(&tickets), Arc::clone(&crew));
            let helper = thread::spawn(move || {
                its_crew.look(HELPER);
                its_crew.sleep(HELPER);
                !theirs.has_offers()
            });
            tickets.post(7);
            let is_woken = crew.call(OWNER) == Some(HELPER);
            let is_asleep = helper.join().unwrap();
            // Busy still when it was called: it looks before it sleeps.
            assert!(is_woken || !is_asleep, "a helper sleeps beside a ticket");
        }
    };
}

fn finds(test: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| model(test))).is_err()
}

#[test]
fn a_helper_does_not_sleep_beside_a_ticket() {
    model(hand_over!(Tickets<usize>, Crew));
}

#[test]
fn the_model_finds_a_fence_that_is_missing() {
    assert!(finds(hand_over!(planted::tickets::Tickets<usize>, planted::tickets::Crew)));
}

#[test]
fn the_model_finds_a_delivery_that_ends_too_early() {
    let is_found = finds(|| {
        let (tickets, log) = (Arc::new(Tickets::new(2)), Log::default());
        for work in 0..2 {
            tickets.post(work);
        }
        let careless = |tickets: &Tickets<usize>, log: &Log| {
            while let Some(taken) = tickets.take() {
                taken.finish();
                while let Some(delivery) = tickets.deliver() {
                    let work = delivery.unwrap();
                    drop(delivery);
                    log.lock().unwrap().push(work);
                }
            }
        };
        let (theirs, its_log) = (Arc::clone(&tickets), Arc::clone(&log));
        let helper = thread::spawn(move || careless(&theirs, &its_log));
        careless(&tickets, &log);
        helper.join().unwrap();
        assert_eq!(*log.lock().unwrap(), [0, 1]);
    });
    assert!(is_found);
}

#[test]
fn a_sleeper_is_woken_once() {
    model(|| {
        let crew = Arc::new(Crew::new(3));
        crew.sleep(2);
        let woken = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..2)
            .map(|member| {
                let (crew, woken) = (Arc::clone(&crew), Arc::clone(&woken));
                thread::spawn(move || {
                    if crew.call(member) == Some(2) {
                        woken.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    });
}
