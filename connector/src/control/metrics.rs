//! What the control thread counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles, shared with the registry.
#[derive(Debug, Clone, Default)]
pub(super) struct Control {
    pub(super) gate_in_flight: Gauge,
    pub(super) gate_requests: Counter,
    pub(super) gate_unreachable: Counter,
    pub(super) logics: Gauge,
    pub(super) owners: Gauge,
    pub(super) channels: Gauge,
    pub(super) holds: Gauge,
    pub(super) delivered: Counter,
    pub(super) queue_drops: Counter,
    pub(super) lease_failures: Counter,
    pub(super) routes_written: Counter,
}

impl Control {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("connector");
        let m = self.clone();
        registry.register("gate_in_flight", "Requests that logic has not answered (requests, now)", m.gate_in_flight);
        registry.register("gate_requests", "Requests to logic (requests)", m.gate_requests);
        registry.register(
            "gate_unreachable",
            "Requests that no logic could be asked, or whose logic's stream broke (requests)",
            m.gate_unreachable,
        );
        registry.register("logics", "Streams to logics that stand (streams, now)", m.logics);
        registry.register("owners", "Streams of jobs that stand (streams, now)", m.owners);
        registry.register("channels", "Channels that some core has (channels, now)", m.channels);
        registry.register("holds", "Channels whose owner has not answered a hold (channels, now)", m.holds);
        registry.register("delivered", "Messages of channels that jobs delivered (messages)", m.delivered);
        registry.register(
            "queue_drops",
            "Messages and pushes dropped because a core's queue was full (messages)",
            m.queue_drops,
        );
        registry.register("lease_failures", "Renewals of the lease that failed (renewals)", m.lease_failures);
        registry.register("routes_written", "Changes of session routes that were written (changes)", m.routes_written);
    }
}
