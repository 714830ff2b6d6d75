//! Rates and numbers that clients are held to: what one session asks, what one address holds.
//!
//! Invariants, each the name of a test:
//! - `a_bucket_lets_its_rate_through_and_no_more`.
//! - `an_address_is_forgotten_when_it_owes_nothing`: the table cannot be grown by connecting and going.
//! - `each_refusal_of_an_address_takes_longer_until_it_has_been_quiet`.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::config::EngineConfig;

/// A reader that is skipped over again and again for so long stays behind, and is closed, milliseconds: a poor minute of a
/// mobile network is borne.
pub(super) const BEHIND_MS: u64 = 60_000;
/// Whoever was not skipped over for so long has caught up, milliseconds.
pub(super) const CAUGHT_UP_MS: u64 = 10_000;
const _: () = assert!(CAUGHT_UP_MS < BEHIND_MS);

/// A session whose refused requests amount to this many seconds of its rate is closed: it does not heed refusals.
pub(super) const DEBT_SECONDS: u32 = 5;

/// How long a refused connection is kept open, milliseconds: the first one of an address, doubled with each, and the
/// longest. Some client libraries connect again at once and for ever.
const REFUSED_MS: u64 = 1000;
const REFUSED_MS_MAX: u64 = 30_000;
/// An address without a refusal for so long begins anew, milliseconds.
const REFUSED_FORGET_MS: u64 = 120_000;
const _: () = assert!(REFUSED_MS_MAX < REFUSED_FORGET_MS);

/// What counts as one address: an IPv6 client has a whole /64 to choose from (RFC 6177), and no limit would hold it.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
    }
}

/// A token bucket that refused requests draw on, too. Holds at most what the rate gives in [`Bucket::PERIOD`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    /// Thousandths of a token, drawn. Of a rate over 700,000 none is ever `Abuse`.
    drawn: u32,
    /// Milliseconds, the lower half of the clock. Whoever draws nothing for 49 days may be refused once.
    filled: u32,
}

/// What a bucket says of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Goes ahead.
    Within,
    /// Refused; try again after this many milliseconds.
    Over(u32),
    /// Refused for the last time.
    Abuse,
}

impl Bucket {
    /// Nothing drawn.
    pub(super) const NEW: Self = Self { drawn: 0, filled: 0 };

    /// Draws one token out of `rate` in `period_ms`, which is also the burst.
    pub(super) fn draw(&mut self, now_ms: u64, rate: u32, period_ms: u64) -> Verdict {
        let (rate, full) = (u64::from(rate.max(1)), u64::from(rate.max(1)) * 1000);
        let refilled = self.rested_ms(now_ms).saturating_mul(full) / period_ms.max(1);
        if refilled > 0 {
            self.drawn = u64::from(self.drawn).saturating_sub(refilled) as u32;
            self.filled = now_ms as u32;
        }
        self.drawn = self.drawn.saturating_add(1000);
        let drawn = u64::from(self.drawn);
        if drawn <= full {
            Verdict::Within
        } else if drawn <= full * (1 + u64::from(DEBT_SECONDS)) {
            let owed = drawn - full;
            Verdict::Over((owed * period_ms / (rate * 1000)).clamp(1, 60_000) as u32)
        } else {
            Verdict::Abuse
        }
    }

    fn rested_ms(&self, now_ms: u64) -> u64 {
        u64::from((now_ms as u32).wrapping_sub(self.filled))
    }

    /// Whether it is full again.
    pub(super) fn is_rested(&self, now_ms: u64, period_ms: u64) -> bool {
        self.drawn == 0 || self.rested_ms(now_ms) > period_ms * u64::from(DEBT_SECONDS + 1)
    }
}

/// One client address.
#[derive(Debug, Default)]
struct Address {
    connections: u32,
    /// Those of them that are authenticated.
    sessions: u32,
    new_rooms: Bucket,
    refusals: Refusals,
}

/// Refused authentications of one address.
#[derive(Debug, Default)]
struct Refusals {
    /// In a row.
    count: u8,
    /// When the last one was, milliseconds.
    last_ms: u64,
}

impl Refusals {
    fn is_over(&self, now_ms: u64) -> bool {
        self.count == 0 || now_ms.saturating_sub(self.last_ms) > REFUSED_FORGET_MS
    }

    fn next(&mut self, now_ms: u64) -> u64 {
        if self.is_over(now_ms) {
            self.count = 0;
        }
        let delay_ms = (REFUSED_MS << self.count.min(8)).min(REFUSED_MS_MAX);
        (self.count, self.last_ms) = (self.count.saturating_add(1), now_ms);
        delay_ms
    }
}

impl Address {
    /// Whether there is nothing to remember of it.
    fn is_idle(&self, now_ms: u64) -> bool {
        self.connections == 0
            && self.sessions == 0
            && self.new_rooms.is_rested(now_ms, NEW_ROOMS_PERIOD_MS)
            && self.refusals.is_over(now_ms)
    }
}

/// The client addresses of a core.
#[derive(Debug, Default)]
struct Addresses {
    table: FxHashMap<IpAddr, Address>,
    came: Vec<IpAddr>,
    went: Vec<IpAddr>,
}

/// Milliseconds in which an address may make its number of new rooms, and a session its own.
pub(super) const NEW_ROOMS_PERIOD_MS: u64 = 60_000;

impl Addresses {
    /// Counts a connection; `false`, and not counted, if there are `most` (0: any number).
    fn connect(&mut self, address: IpAddr, most: u32) -> bool {
        let address = network(address);
        let entry = self.table.entry(address).or_default();
        if most > 0 && entry.connections >= most {
            return false;
        }
        entry.connections += 1;
        true
    }

    /// A connection that [`Addresses::connect`] counted is gone.
    fn disconnect(&mut self, now_ms: u64, address: IpAddr) {
        let address = network(address);
        if let Some(entry) = self.table.get_mut(&address) {
            entry.connections = entry.connections.saturating_sub(1);
            if entry.is_idle(now_ms) {
                self.table.remove(&address);
            }
        }
    }

    /// One of the connections became a session.
    fn admit(&mut self, address: IpAddr) {
        let address = network(address);
        let entry = self.table.entry(address).or_default();
        entry.sessions += 1;
        if entry.sessions == 1 {
            self.came.push(address);
        }
    }

    /// A session is gone (its connection is counted apart).
    fn dismiss(&mut self, address: IpAddr) {
        let address = network(address);
        if let Some(entry) = self.table.get_mut(&address) {
            entry.sessions = entry.sessions.saturating_sub(1);
            if entry.sessions == 0 {
                self.went.push(address);
            }
        }
    }

    /// Whether `address` may make one more new room.
    fn new_room(&mut self, now_ms: u64, address: IpAddr, rate: u32) -> bool {
        let address = network(address);
        rate == 0
            || self.table.entry(address).or_default().new_rooms.draw(now_ms, rate, NEW_ROOMS_PERIOD_MS)
                == Verdict::Within
    }

    /// Addresses that have a first session, and that have lost their last one, since the last call.
    fn changes(&mut self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        (std::mem::take(&mut self.came), std::mem::take(&mut self.went))
    }

    /// Forgets who has no connection and owes nothing. Once a minute is enough.
    fn sweep(&mut self, now_ms: u64) {
        self.table.retain(|_, entry| !entry.is_idle(now_ms));
    }

    /// Addresses that are known.
    fn len(&self) -> usize {
        self.table.len()
    }
}

/// Whether a connection is one of its address's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Its address is not limited, or not known yet.
    No,
    /// It is.
    Yes,
    /// The address has as many as it may: the client is told so in what it speaks, and closed.
    Over,
}

/// Connections of a core that are over their address's limit and are told so. Over it: closed without a word.
const OVER_MAX: usize = 256;

/// How often refused origins are logged, milliseconds.
const ORIGINS_EVERY_MS: u64 = 10_000;

/// What a core holds its clients to beyond one session.
#[derive(Debug, Default)]
pub(super) struct Limits {
    addresses: Addresses,
    /// Connections over their address's limit that are about to be told so.
    over: usize,
    /// Pages of unlisted origins since the last one was logged.
    origins_refused: u64,
    /// When the next one may be logged, milliseconds.
    origins_logged_ms: u64,
}

impl Limits {
    /// Whether connections of `address` are counted.
    fn count(config: &EngineConfig, address: IpAddr) -> bool {
        config.limit_loopback || !address.is_loopback()
    }

    /// Counts a connection of `address`; `None` if it is to be closed without a word.
    pub(super) fn connect(&mut self, config: &EngineConfig, address: IpAddr) -> Option<Counted> {
        if !Self::count(config, address) {
            return Some(Counted::No);
        }
        if self.addresses.connect(address, config.connections_per_address) {
            return Some(Counted::Yes);
        }
        if self.over >= OVER_MAX {
            return None;
        }
        self.over += 1;
        Some(Counted::Over)
    }

    /// A connection that was counted so is gone.
    pub(super) fn disconnect(&mut self, now_ms: u64, address: IpAddr, counted: Counted) {
        match counted {
            Counted::Yes => self.addresses.disconnect(now_ms, address),
            Counted::Over => self.over -= 1,
            Counted::No => {}
        }
    }

    /// A connection of `address` became a session.
    pub(super) fn admit(&mut self, address: IpAddr) {
        self.addresses.admit(address);
    }

    /// A session of `address` is gone.
    pub(super) fn dismiss(&mut self, address: IpAddr) {
        self.addresses.dismiss(address);
    }

    /// Whether `address` may make one more new room.
    pub(super) fn new_room(&mut self, config: &EngineConfig, now_ms: u64, address: IpAddr) -> bool {
        !Self::count(config, address) || self.addresses.new_room(now_ms, address, config.new_rooms_per_address)
    }

    /// An authentication from `address` is refused: how long its connection is kept open, milliseconds.
    pub(super) fn refused(&mut self, now_ms: u64, address: IpAddr) -> u64 {
        self.addresses.table.entry(network(address)).or_default().refusals.next(now_ms)
    }

    /// See [`Addresses::changes`].
    pub(super) fn changes(&mut self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        self.addresses.changes()
    }

    /// See [`Addresses::sweep`].
    pub(super) fn sweep(&mut self, now_ms: u64) {
        self.addresses.sweep(now_ms);
    }

    /// Addresses that are known.
    pub(super) fn addresses(&self) -> usize {
        self.addresses.len()
    }

    /// A page of an unlisted origin was refused. Where that is to be logged: how many were since the last one.
    pub(super) fn origin_refused(&mut self, now_ms: u64) -> Option<u64> {
        self.origins_refused += 1;
        (now_ms >= self.origins_logged_ms).then(|| {
            self.origins_logged_ms = now_ms + ORIGINS_EVERY_MS;
            std::mem::take(&mut self.origins_refused)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_rate_through_and_no_more() {
        let mut bucket = Bucket::default();
        let within = |bucket: &mut Bucket, now, times| {
            (0..times).filter(|_| bucket.draw(now, 10, 1000) == Verdict::Within).count()
        };
        assert_eq!(within(&mut bucket, 5000, 11), 10, "the burst");
        assert_eq!(within(&mut bucket, 5300, 3), 2, "three tokens came, one was owed");
        assert_eq!(within(&mut bucket, 9000, 10), 10);
        assert!(matches!(bucket.draw(9000, 10, 1000), Verdict::Over(100)));
        let refused = (0..100).take_while(|_| bucket.draw(9000, 10, 1000) != Verdict::Abuse).count();
        assert_eq!(refused, 49);
    }

    #[test]
    fn an_address_is_forgotten_when_it_owes_nothing() {
        let (mut addresses, one) = (Addresses::default(), IpAddr::from([10, 0, 0, 1]));
        assert!(addresses.connect(one, 2) && addresses.connect(one, 2) && !addresses.connect(one, 2));
        addresses.admit(one);
        assert!(addresses.new_room(1_000_000, one, 1) && !addresses.new_room(1_000_000, one, 1));
        addresses.dismiss(one);
        assert_eq!(addresses.changes(), (vec![one], vec![one]));
        (0..2).for_each(|_| addresses.disconnect(1_000_001, one));
        assert!(!addresses.new_room(1_000_002, one, 1), "reconnecting does not help");
        addresses.sweep(1_000_003);
        assert_eq!(addresses.len(), 1);
        addresses.sweep(2_000_000);
        assert_eq!(addresses.len(), 0);
    }

    #[test]
    fn each_refusal_of_an_address_takes_longer_until_it_has_been_quiet() {
        let (mut limits, one, other) = (Limits::default(), IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let delays: Vec<_> = (0..300).map(|second| limits.refused(1_000_000 + second * 1000, one)).collect();
        assert_eq!(delays[..6], [1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert!(delays[6..].iter().all(|delay_ms| *delay_ms == REFUSED_MS_MAX));
        assert_eq!(limits.refused(1_300_000, other), 1000);
        limits.sweep(1_300_000);
        assert_eq!(limits.addresses(), 2, "reconnecting does not help");
        assert_eq!(limits.refused(1_500_000, one), 1000);
        limits.sweep(1_700_000);
        assert_eq!(limits.addresses(), 0);
    }

    #[test]
    fn an_ipv6_client_is_one_address_however_many_it_uses() {
        let mut addresses = Addresses::default();
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(addresses.connect(of("2001:db8::1"), 2));
        assert!(addresses.connect(of("2001:db8::2"), 2));
        assert!(!addresses.connect(of("2001:db8::3"), 2));
        assert!(addresses.connect(of("2001:db8:0:1::1"), 2));
        addresses.disconnect(0, of("2001:db8::2"));
        assert!(addresses.connect(of("2001:db8::4"), 2));
    }
}
