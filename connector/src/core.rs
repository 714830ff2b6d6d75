//! A core: its engine, and what it counts made known to the operator's metrics.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proto::error::TABLE;

use crate::driver::Balance;
use engine::event::{CoreRequest, Input};
use engine::{Counters, Engine, Sizes};
use machine::{Key, Machine, Next, Now, Outlet, Reading};

/// How often a core publishes what it counted, while it has anything to do. A measurement in the middle of a load reads
/// nothing older.
const SNAPSHOT_EVERY_MS: u64 = 10;

/// What a core counted, as it last published it.
#[derive(Debug, Default)]
pub(crate) struct StatsSnapshot(Mutex<(Counters, Sizes)>);

/// An input of the control thread, with the time.
#[derive(Debug)]
pub(crate) struct StampedInput {
    pub(crate) input: Input,
    /// When it was handed to the core.
    pub(crate) at: Instant,
}

impl From<Input> for StampedInput {
    fn from(input: Input) -> Self {
        Self { input, at: Instant::now() }
    }
}

/// The machine of one core.
pub(crate) struct MeteredEngine {
    engine: Engine,
    snapshot: Arc<StatsSnapshot>,
    snapshot_ms: u64,
    /// When the first of the messages was told that are not sent to everyone yet.
    sending: Option<Instant>,
    writing: Histogram,
}

impl MeteredEngine {
    /// `writing` is one for all cores. It locks, but once for each time that a core has caught up, which is seldom
    /// where there is much to do.
    pub(crate) fn new(engine: Engine, snapshot: Arc<StatsSnapshot>, writing: Histogram) -> Self {
        Self { engine, snapshot, snapshot_ms: 0, sending: None, writing }
    }

    /// From a delivery to when a core had sent everything.
    pub(crate) fn writing(registry: &mut Registry) -> Histogram {
        let writing = Histogram::new(proto::SECONDS_BUCKETS);
        registry.sub_registry_with_prefix("connector").register(
            "writing_seconds",
            "From handing a delivery to a core to when the core had sent all that it had to send, seconds",
            writing.clone(),
        );
        writing
    }
}

impl Machine for MeteredEngine {
    type Input = StampedInput;
    type Request = CoreRequest;

    fn opened(&mut self, now: Now, listener: usize, peer: SocketAddr) -> Option<Key> {
        self.engine.opened(now, listener, peer)
    }

    fn bytes(&mut self, now: Now, key: Key, bytes: &mut [u8]) -> Reading {
        self.engine.bytes(now, key, bytes)
    }

    fn writable(&mut self, now: Now, key: Key) {
        self.engine.writable(now, key);
    }

    fn closed(&mut self, now: Now, key: Key) {
        self.engine.closed(now, key);
    }

    fn input(&mut self, now: Now, stamped: StampedInput) {
        if matches!(stamped.input, Input::Deliver(_)) {
            self.sending.get_or_insert(stamped.at);
        }
        self.engine.input(now, stamped.input);
    }

    fn round(&mut self, now: Now, outlet: &mut impl Outlet) -> Next {
        let next = self.engine.round(now, outlet);
        if !next.again
            && let Some(since) = self.sending.take()
        {
            self.writing.observe(since.elapsed().as_secs_f64());
        }
        if now.mono_ms >= self.snapshot_ms {
            self.snapshot_ms = now.mono_ms + SNAPSHOT_EVERY_MS;
            *self.snapshot.0.lock().unwrap_or_else(PoisonError::into_inner) =
                (self.engine.counters().clone(), self.engine.sizes());
        }
        next
    }

    fn next_request(&mut self) -> Option<CoreRequest> {
        self.engine.next_request()
    }

    fn done(&self) -> bool {
        self.engine.done()
    }
}

/// The sums over all cores, made when they are asked for.
#[derive(Debug)]
pub(crate) struct MetricsCollector {
    pub(crate) snapshots: Vec<Arc<StatsSnapshot>>,
    pub(crate) balance: Arc<Balance>,
}

/// What is summed, by name, with its unit and meaning.
type Count = (&'static str, &'static str, fn(&Counters) -> u64);

const COUNTS: &[Count] = &[
    ("accepted", "Connections accepted", |c| c.accepted),
    ("refused", "Connections refused: too many of one address or in all, or draining", |c| c.refused),
    ("admitted", "Sessions that logic admitted", |c| c.admitted),
    ("compression_declined", "Offers of permessage-deflate that were not taken", |c| c.compression_declined),
    ("left", "Connections that their peer closed, or that broke", |c| c.left),
    ("requests", "Requests of clients, heartbeats among them", |c| c.requests),
    ("room_messages", "Room messages that came to a core, each core counted", |c| c.delivered),
    ("deliveries", "Room messages sent whole, each session counted", |c| c.deliveries),
    ("skipped", "Room messages that slow readers were skipped over, each session counted", |c| c.skipped),
    ("shed", "Room messages not sent because the core could not keep up, each session counted", |c| c.shed),
    ("missed", "Room messages that a core has not got, each room counted", |c| c.missed),
    ("pushed", "Pushes put into sessions' output", |c| c.pushed),
    ("push_drops", "Pushes dropped: the session takes no more, or did not accept them", |c| c.push_drops),
    ("writes", "Sends to sockets", |c| c.writes),
    ("short_writes", "Sends that the kernel had no room for", |c| c.short_writes),
    ("sent_bytes", "Bytes sent to clients", |c| c.bytes_out),
    ("received_bytes", "Bytes received from clients", |c| c.bytes_in),
];

type Size = (&'static str, &'static str, fn(&Sizes) -> usize);

const SIZES: &[Size] = &[
    ("connections", "Connections now", |s| s.connections),
    ("sessions", "Admitted sessions now", |s| s.sessions),
    ("rooms", "Rooms now, each core counted, those that everyone has just left among them", |s| s.rooms),
];

type ByCode = (&'static str, &'static str, fn(&Counters) -> &[u64]);

const BY_CODE: &[ByCode] = &[
    ("connector_closed", "Sessions closed from here, by the error's name", |c| &c.closed),
    ("connector_errors", "Requests refused, by the error's name", |c| &c.errors),
];

impl Collector for MetricsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let cores: Vec<_> = self
            .snapshots
            .iter()
            .map(|snapshot| snapshot.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .collect();
        for (name, help, count) in COUNTS {
            let sum = ConstCounter::new(cores.iter().map(|(counters, _)| count(counters)).sum::<u64>());
            sum.encode(encoder.encode_descriptor(&format!("connector_{name}"), help, None, sum.metric_type())?)?;
        }
        let handed_over = ConstCounter::new(self.balance.handed_over());
        handed_over.encode(encoder.encode_descriptor(
            "connector_handed_over",
            "Connections that the core which accepted them handed to one that held clearly fewer",
            None,
            handed_over.metric_type(),
        )?)?;
        for (name, help, size) in SIZES {
            let sum = ConstGauge::new(cores.iter().map(|(_, sizes)| size(sizes) as i64).sum::<i64>());
            sum.encode(encoder.encode_descriptor(&format!("connector_{name}"), help, None, sum.metric_type())?)?;
        }
        for (name, help, counts) in BY_CODE {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (at, row) in TABLE.iter().enumerate() {
                let sum = ConstCounter::new(cores.iter().map(|(counters, _)| counts(counters)[at]).sum::<u64>());
                sum.encode(family.encode_family(&[("code", row.name)])?)?;
            }
        }
        Ok(())
    }
}
