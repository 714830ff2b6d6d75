//! What is counted. Every label has few values: codes, calls, the configured key names.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use proto::client::Error;
use proto::error::row;

/// The metrics of one logic.
#[derive(Clone)]
pub(crate) struct Metrics {
    gate: Family<Ask, Counter>,
    api: Family<Call, Counter>,
    accept: Histogram,
    durable: Histogram,
    pub(crate) gate_waiting: Gauge,
    pub(crate) penalised: Gauge,
    pub(crate) jobs: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ask {
    ask: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: &'static str,
    caller: String,
    result: &'static str,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            gate: Family::default(),
            api: Family::default(),
            accept: Histogram::new(proto::SECONDS_BUCKETS),
            durable: Histogram::new(proto::SECONDS_BUCKETS),
            gate_waiting: Gauge::default(),
            penalised: Gauge::default(),
            jobs: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("logic");
        registry.register("gate_requests", "Requests of connectors, by kind and result", metrics.gate.clone());
        registry.register("api_calls", "Calls of the API, by call, key name and result", metrics.api.clone());
        registry.register(
            "accept_seconds",
            "From a request to publish, read, to handing its records to the bus, seconds",
            metrics.accept.clone(),
        );
        registry.register(
            "durable_seconds",
            "From handing a record to the bus until it is durable, seconds",
            metrics.durable.clone(),
        );
        registry.register("gate_waiting", "Requests of connectors that wait for the bus", metrics.gate_waiting.clone());
        registry.register(
            "jobs",
            "Jobs whose lease stands: without any nobody delivers. Alarm on 0",
            metrics.jobs.clone(),
        );
        registry.register("penalised_users", "Users under a penalty", metrics.penalised.clone());
        metrics
    }

    pub(crate) fn asked<T>(&self, ask: &'static str, answer: &Result<T, Error>) {
        self.gate.get_or_create(&Ask { ask, result: result(answer) }).inc();
    }

    pub(crate) fn called<T>(&self, call: &'static str, caller: &str, answer: &Result<T, Error>) {
        self.api.get_or_create(&Call { call, caller: caller.to_owned(), result: result(answer) }).inc();
    }

    pub(crate) fn accepted(&self, took: Duration) {
        self.accept.observe(took.as_secs_f64());
    }

    pub(crate) fn durable(&self, took: Duration) {
        self.durable.observe(took.as_secs_f64());
    }
}

fn result<T>(answer: &Result<T, Error>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        Err(refused) => row(refused.code()).name,
    }
}
