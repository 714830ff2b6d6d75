//! Which core serves a connection (rule 33): the kernel deals connections out to the cores' listeners by a hash, whatever
//! each core holds already, so a core that has accepted one while another holds clearly fewer hands it over.
//!
//! ```text
//!   accept ─▶ Share::elsewhere ─ None ─▶ Machine::opened
//!                  └ that core ─▶ its inbox, bounded ─wake_up─▶ its next turn ─▶ Machine::opened
//!                                   └ full, or closed ─▶ stays where it was accepted
//! ```
//!
//! It moves nobody who has been opened, and knows only how many connections a core holds, not what they cost.
//! What Envoy's exact balance and Seastar's connection distribution do under one lock or on one thread (the least loaded
//! of all, charged at once) is done here by each core for itself; that a full inbox hands nothing over is as in HAProxy.
//!
//! Invariants, each the name of a test:
//! - `cores_as_far_apart_as_chance_puts_them_hand_nothing_over`;
//! - `whom_a_connection_is_handed_to_is_charged_at_once`: two that look one after the other see different numbers;
//! - `a_connection_is_handed_over_once`: whoever takes it from an inbox opens it, whatever the others hold by then;
//! - `a_full_or_closed_inbox_gives_back`, and `what_lies_in_an_inbox_that_closes_is_still_taken`: none is lost.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::utils::CachePadded;

use super::WakeUp;

/// By how many connections cores differ at least before one hands over: what a hand-over costs (a wake-up, the
/// connection's cache lines) is not worth less.
const SLACK_MIN: u32 = 16;
/// A hash deals a core `n` connections with a deviation of the square root of `n`; the fullest and the emptiest of 16 cores
/// are 3.5 of these apart on average, of 64 cores 4.7. So what chance does is left alone: 6 % at 10,000 connections a core.
const SLACK_DEVIATIONS: u32 = 6;
/// Connections that wait for a core, as many as it accepts in a turn; over it they stay with who accepted them: a core
/// that does not come round to its inbox is not idle, whatever it holds.
pub(super) const INBOX_MAX: usize = 64;
/// Set in [`CorePlace::held`] while the core takes none from others; more than any number of connections.
const CLOSED: u32 = 1 << 31;

/// How many more than `held` a core may hold and still hand nothing over to one that holds `held`.
#[must_use]
pub fn slack(held: u32) -> u32 {
    SLACK_MIN + SLACK_DEVIATIONS * held.isqrt()
}

/// A connection that was accepted and that no machine knows yet.
#[derive(Debug)]
pub(super) struct AcceptedSocket {
    pub(super) stream: TcpStream,
    pub(super) listener: usize,
    pub(super) peer: SocketAddr,
}

/// The cores that share listeners: what each holds.
#[derive(Debug)]
pub struct Balance(Box<[CachePadded<CorePlace>]>);

#[derive(Debug)]
struct CorePlace {
    /// Connections of the core, those in its inbox among them.
    held: AtomicU32,
    /// How many it has handed over.
    handed_over: AtomicU64,
    /// Something may lie in the inbox: spares its core the lock at every turn.
    waiting: AtomicBool,
    /// Locked for a push or a pop only.
    inbox: Mutex<Inbox>,
    wake_up: Arc<WakeUp>,
}

#[derive(Debug, Default)]
struct Inbox {
    open: bool,
    queue: VecDeque<AcceptedSocket>,
}

impl CorePlace {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Balance {
    /// Of so many cores, none of which runs yet.
    pub(super) fn new(cores: usize) -> Arc<Self> {
        let place = |_| {
            CachePadded::new(CorePlace {
                held: AtomicU32::new(CLOSED),
                handed_over: AtomicU64::new(0),
                waiting: AtomicBool::new(false),
                inbox: Mutex::default(),
                wake_up: Arc::default(),
            })
        };
        Arc::new(Self((0..cores).map(place).collect()))
    }

    /// Connections that a core holds now, those on their way to it among them.
    ///
    /// # Panics
    /// If there is no such core.
    #[must_use]
    pub fn held(&self, core: usize) -> u32 {
        self.0[core].held.load(Ordering::Relaxed) & !CLOSED
    }

    /// Connections that were handed over by the core that had accepted them, since the start.
    #[must_use]
    pub fn handed_over(&self) -> u64 {
        self.0.iter().map(|place| place.handed_over.load(Ordering::Relaxed)).sum()
    }
}

/// The balance as one core sees it. When it goes, the inbox is closed, and with it what nobody has taken.
#[derive(Debug)]
pub(super) struct Share {
    balance: Arc<Balance>,
    core: usize,
}

impl Share {
    pub(super) fn new(balance: Arc<Balance>, core: usize) -> Self {
        Self { balance, core }
    }

    fn here(&self) -> &CorePlace {
        &self.balance.0[self.core]
    }

    /// Wakes the core when something is in its inbox.
    pub(super) fn wake_up(&self) -> Arc<WakeUp> {
        self.here().wake_up.clone()
    }

    /// Takes connections from others from now on.
    pub(super) fn open(&self) {
        self.here().inbox().open = true;
        self.here().held.fetch_and(!CLOSED, Ordering::Relaxed);
    }

    /// Takes no more from others. What lies in the inbox is still to be taken.
    pub(super) fn close(&self) {
        self.here().held.fetch_or(CLOSED, Ordering::Relaxed);
        self.here().inbox().open = false;
    }

    /// The core has one connection more.
    pub(super) fn hold(&self) {
        self.here().held.fetch_add(1, Ordering::Relaxed);
    }

    /// The core has one connection less.
    pub(super) fn let_go(&self) {
        self.here().held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Which core a connection that has come here is to be handed to; `None`: to none. One that takes none itself hands
    /// over whatever it can.
    pub(super) fn elsewhere(&self) -> Option<usize> {
        let held = |core: usize| self.balance.0[core].held.load(Ordering::Relaxed);
        let others = (0..self.balance.0.len()).filter(|&core| core != self.core);
        let (least, core) = others.map(|core| (held(core), core)).min()?;
        (least < CLOSED && held(self.core) > least + slack(least)).then_some(core)
    }

    /// Hands a connection to the core `to` and wakes it.
    ///
    /// # Errors
    /// The connection itself: the inbox is full or closed.
    pub(super) fn hand(&self, to: usize, accepted: AcceptedSocket) -> Result<(), AcceptedSocket> {
        let there = &self.balance.0[to];
        {
            let mut inbox = there.inbox();
            if !inbox.open || inbox.queue.len() >= INBOX_MAX {
                return Err(accepted);
            }
            // Inside of the lock: whoever takes it finds it counted.
            there.held.fetch_add(1, Ordering::Relaxed);
            there.waiting.store(true, Ordering::Release);
            inbox.queue.push_back(accepted);
        }
        self.here().handed_over.fetch_add(1, Ordering::Relaxed);
        there.wake_up.wake();
        Ok(())
    }

    /// The next of those that were handed to this core. It is not counted as held any more.
    pub(super) fn take(&self) -> Option<AcceptedSocket> {
        let here = self.here();
        if !here.waiting.load(Ordering::Acquire) {
            return None;
        }
        let accepted = {
            let mut inbox = here.inbox();
            if inbox.queue.is_empty() {
                here.waiting.store(false, Ordering::Relaxed);
            }
            inbox.queue.pop_front()?
        };
        self.let_go();
        Some(accepted)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.close();
        self.here().inbox().queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn shares(cores: usize) -> (Arc<Balance>, Vec<Share>) {
        let balance = Balance::new(cores);
        let shares: Vec<_> = (0..cores).map(|core| Share::new(balance.clone(), core)).collect();
        shares.iter().for_each(Share::open);
        (balance, shares)
    }

    fn accepted() -> (TcpStream, AcceptedSocket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        (client, AcceptedSocket { stream, listener: 0, peer })
    }

    #[test]
    fn cores_as_far_apart_as_chance_puts_them_hand_nothing_over() {
        const CORES: usize = 16;
        let (balance, shares) = shares(CORES);
        let mut seed = 4_u64;
        for dealt in 0..CORES * 5_000 {
            // As the kernel deals: by something as good as random (splitmix64).
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let core = (mixed >> 32) as usize % CORES;
            assert_eq!(shares[core].elsewhere(), None, "after {dealt}");
            shares[core].hold();
        }
        // And these are clearly fewer than the others.
        (0..900).for_each(|_| shares[3].let_go());
        assert!(shares[5].elsewhere() == Some(3) && shares[3].elsewhere().is_none());
        assert!(balance.held(5) > balance.held(3) + slack(balance.held(3)));
    }

    #[test]
    fn whom_a_connection_is_handed_to_is_charged_at_once() {
        let (balance, shares) = shares(3);
        (0..=slack(0)).for_each(|_| shares[0].hold());
        let mut clients = Vec::new();
        for to in [1, 2] {
            assert_eq!(shares[0].elsewhere(), Some(to));
            let (client, accepted) = accepted();
            shares[0].hand(to, accepted).unwrap();
            clients.push(client);
            assert_eq!(balance.held(to), 1);
        }
        assert_eq!((shares[0].elsewhere(), balance.handed_over()), (None, 2));
    }

    #[test]
    fn a_connection_is_handed_over_once() {
        let (balance, shares) = shares(2);
        let (client, accepted) = accepted();
        shares[0].hand(1, accepted).unwrap();
        (0..1000).for_each(|_| shares[1].hold());
        let taken = shares[1].take().expect("it is for this core, however many it holds by now");
        assert_eq!(taken.peer, client.local_addr().unwrap());
        assert!(shares[1].take().is_none() && shares[0].take().is_none());
        assert_eq!((balance.held(1), balance.handed_over()), (1000, 1));
    }

    #[test]
    fn a_full_or_closed_inbox_gives_back() {
        let (balance, shares) = shares(2);
        let mut clients = Vec::new();
        for _ in 0..INBOX_MAX {
            let (client, accepted) = accepted();
            shares[0].hand(1, accepted).unwrap();
            clients.push(client);
        }
        let (_client, accepted) = accepted();
        let accepted = shares[0].hand(1, accepted).unwrap_err();
        while shares[1].take().is_some() {}
        shares[0].hand(1, accepted).unwrap();
        let accepted = shares[1].take().unwrap();
        shares[1].close();
        assert!(shares[0].hand(1, accepted).is_err());
        assert_eq!((balance.held(1), balance.handed_over()), (0, INBOX_MAX as u64 + 1));
        // Nothing is meant for it either; and what comes to it by itself goes elsewhere.
        (0..1000).for_each(|_| shares[0].hold());
        assert_eq!((shares[0].elsewhere(), shares[1].elsewhere()), (None, Some(0)));
    }

    #[test]
    fn what_lies_in_an_inbox_that_closes_is_still_taken() {
        let (balance, mut shares) = shares(2);
        let (_first, accepted_1) = accepted();
        let (second, accepted_2) = accepted();
        shares[0].hand(1, accepted_1).unwrap();
        shares[0].hand(1, accepted_2).unwrap();
        shares[1].close();
        assert!(shares[1].take().is_some());
        assert_eq!(balance.held(1), 1);
        // A core that ends without looking: its peers see the end.
        shares.pop();
        second.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        assert_eq!(std::io::Read::read(&mut &second, &mut [0; 1]).unwrap(), 0);
    }
}
