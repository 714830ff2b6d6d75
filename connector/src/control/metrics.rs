//! What the control thread counts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Handles, shared with the registry.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) gate_in_flight: Gauge,
    pub(super) gate_requests: Counter,
    pub(super) gate_unreachable: Counter,
    pub(super) logics: Gauge,
    pub(super) silent_logics: Gauge,
    pub(super) owners: Gauge,
    pub(super) channels: Gauge,
    pub(super) holds: Gauge,
    pub(super) delivered: Counter,
    pub(super) delivery: Histogram,
    pub(super) queue_drops: Counter,
    pub(super) lease_failures: Counter,
    pub(super) routes_written: Counter,
    pub(super) unowned_partitions: Gauge,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            gate_in_flight: Gauge::default(),
            gate_requests: Counter::default(),
            gate_unreachable: Counter::default(),
            logics: Gauge::default(),
            silent_logics: Gauge::default(),
            owners: Gauge::default(),
            channels: Gauge::default(),
            holds: Gauge::default(),
            delivered: Counter::default(),
            delivery: Histogram::new(proto::SECONDS_BUCKETS),
            queue_drops: Counter::default(),
            lease_failures: Counter::default(),
            routes_written: Counter::default(),
            unowned_partitions: Gauge::default(),
        }
    }
}

impl Control {
    /// A delivery came whose first message was queued then by the job's clock, microseconds since 1970; 0: it is not
    /// said.
    pub(super) fn came(&self, queued_us: u64) {
        if queued_us > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.delivery.observe(now.saturating_sub(Duration::from_micros(queued_us)).as_secs_f64());
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("connector");
        let m = self.clone();
        registry.register("gate_in_flight", "Requests that logic has not answered (requests, now)", m.gate_in_flight);
        registry.register("gate_requests", "Requests to logic (requests)", m.gate_requests);
        registry.register(
            "gate_unreachable",
            "Requests that no logic answered: there was none, or it broke and no other could be asked (requests)",
            m.gate_unreachable,
        );
        registry.register("logics", "Streams to logics that stand (streams, now)", m.logics);
        registry.register(
            "silent_logics",
            "Logics whose stream stands and that do not answer: others are asked (streams, now)",
            m.silent_logics,
        );
        registry.register("owners", "Streams of jobs that stand (streams, now)", m.owners);
        registry.register(
            "unowned_partitions",
            "Partitions that this node has rooms of and no job owns: alarm where it lasts (partitions, now)",
            m.unowned_partitions,
        );
        registry.register("channels", "Channels that some core has (channels, now)", m.channels);
        registry.register("holds", "Channels whose owner has not answered a hold (channels, now)", m.holds);
        registry.register("delivered", "Messages of channels that jobs delivered (messages)", m.delivered);
        registry.register(
            "delivery_seconds",
            "From queueing a delivery in job, by its clock, to taking it here, seconds",
            m.delivery,
        );
        registry.register(
            "queue_drops",
            "Messages and pushes dropped because a core's queue was full (messages)",
            m.queue_drops,
        );
        registry.register("lease_failures", "Renewals of the lease that failed (renewals)", m.lease_failures);
        registry.register("routes_written", "Changes of session routes that were written (changes)", m.routes_written);
    }
}
