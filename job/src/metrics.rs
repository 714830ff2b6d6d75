//! What job counts. Names, units and meanings are in the help texts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

macro_rules! metrics {
    ($($field:ident: $kind:ty = $name:literal $help:literal;)+) => {
        /// All of them; shared by what runs.
        #[derive(Debug)]
        pub(crate) struct Metrics { $(pub(crate) $field: $kind,)+ pub(crate) bus: Histogram, pub(crate) handling: Histogram }

        impl Default for Metrics {
            fn default() -> Self {
                let histogram = || Histogram::new(proto::SECONDS_BUCKETS);
                Self { $($field: Default::default(),)+ bus: histogram(), handling: histogram() }
            }
        }

        impl Metrics {
            /// The metrics, known to `registry` under `job_`.
            pub(crate) fn register(registry: &mut Registry) -> Self {
                let metrics = Self::default();
                let registry = registry.sub_registry_with_prefix("job");
                $(registry.register($name, $help, metrics.$field.clone());)+
                registry.register(
                    "bus_seconds",
                    "From handing a room message to the bus, by logic's clock, to reading it from there, seconds",
                    metrics.bus.clone(),
                );
                registry.register(
                    "handling_seconds",
                    "From reading records to queueing them for connectors, seconds",
                    metrics.handling.clone(),
                );
                metrics
            }
        }
    };
}

type Count = Counter<u64, AtomicU64>;

metrics! {
    records: Count = "records" "Records read from the bus, those read again by a new owner included";
    deliveries: Count = "deliveries" "Room messages put into a connector's queue, one for each connector";
    holds: Count = "holds" "Holds answered";
    gaps: Count = "gaps" "Messages that holders were told they miss, one for each connector";
    resets: Count = "resets" "Queues to a connector that ran over and were dropped, one for each partition";
    repeated: Count = "repeated" "Records dropped because a message of the same ID came within five minutes";
    conflicts: Count = "conflicts" "Records dropped because a message of the same ID and another payload, type or style came within five minutes; the sender's session is told";
    repeats_forgotten: Count = "repeats_forgotten" "Message IDs forgotten before five minutes had passed: job.repeat_ids_max is too small";
    capped: Count = "capped" "Messages dropped by the flow cap, job.room_messages_per_s_max";
    aged: Count = "aged" "Messages not delivered because they were older than job.age_s_max";
    dead_letters: Count = "dead_letters" "Records that could not be read and went to the dead-letter topic";
    dead_letters_waiting: Gauge = "dead_letters_waiting" "Dead letters that the bus has not taken yet";
    claims: Count = "claims" "Partitions claimed";
    partitions: Gauge = "partitions" "Partitions owned now";
    paused: Gauge = "paused_partitions" "Partitions paused because a record is newer than this program: upgrade it. Alarm on any";
    lag: Gauge = "lag" "Records of owned partitions in the bus that are not read yet, a few seconds old";
    connectors: Gauge = "connectors" "Connectors attached";
    queued_bytes: Gauge = "queued_bytes" "Bytes waiting for connectors, sent and not acknowledged included";
    recent_bytes: Gauge = "recent_bytes" "Bytes of recent messages kept, and of the rooms that they are kept for";
    rooms: Gauge = "rooms" "Rooms known";
    pushes: Count = "pushes" "Pushes and commands handed to a connector, one for each connector";
    pushes_dropped: Count = "pushes_dropped" "Pushes and commands dropped because the queue to the connector was full";
    pushes_kept: Gauge = "pushes_kept" "Pushes and commands that wait to be handed to connectors, those included that could not be looked up yet";
    pushes_routes_away: Count = "pushes_routes_away" "Names pushed to and not found within job.push_keep_s because Routes did not answer";
    pushes_routes_incomplete: Count = "pushes_routes_incomplete" "Names pushed to and not found within job.push_keep_s while a connector had not registered all its sessions";
    pushes_late: Count = "pushes_late" "Pushes and commands dropped because they had waited in the bus for longer than 30 s";
    pushes_unattached: Count = "pushes_unattached" "Pushes and commands dropped because no stream to their connector stood";
}
