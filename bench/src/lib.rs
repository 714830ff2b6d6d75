//! Loads a server as its clients would, and measures what they see.
//!
//! It speaks the public dialects and the HTTP API, so that any server which speaks them can be measured; only what a
//! job says to a connector (`owner`), and the connector's own socket options (`limit`), are ours alone. All of it is open
//! loop: what is to be sent has its time, and is late if it is sent late; nothing waits for the answer to what came
//! before.
//!
//! ```text
//!   schedule ─┬▶ publish: HTTP connections ─┬▶ the server ─▶ viewers: reading ─▶ wire ─▶ tally ─▶ audience ─▶ report
//!             └▶ owner: Delivery stream ────┘  (stand)        └─ workers, a process each where one is too small ─┘
//!   idle, storm ─▶ fleet ─orders─▶ workers, a process each: crowd ─▶ wire ─▶ told ─▶ fleet ─▶ report
//! ```

mod admission;
pub mod chat;
mod clock;
mod credential;
mod dial;
mod dialect;
mod document;
mod environment;
mod error;
mod fanout;
mod figures;
mod limit;
mod lines;
mod note;
mod output;
mod owner;
mod pipeline;
mod plot;
mod processor;
mod progress;
mod publish;
mod pushed;
mod reading;
mod schedule;
mod servers;
mod sessions;
mod stand;
mod sweep;
mod tally;
mod wire;
mod workers;

pub use credential::{ApiKey, Token};
pub use dialect::Dialect;
pub use document::Document;
pub use error::Error;
pub use fanout::report::{
    ClassReport, ConnectorReport, Deliveries, Millis, Probes, Publishing, Report, ServerReport, Sessions,
};
pub use fanout::series::{Headline, Series};
pub use fanout::{Fanout, RoomSize, Via};
pub use limit::{Limit, LimitReport, LimitRow};
pub use output::{Output, Printing};
pub use pipeline::{Measured, Named, Pipeline, PipelineReport, Stage};
pub use processor::{Cpus, Usage};
pub use servers::{Cpu, Kind, Look};
pub use sessions::fleet::Crew;
pub use sessions::idle::{Idle, IdleReport, PushReach};
pub use sessions::storm::{Storm, StormReport, Wave, WaveCpu};
pub use sweep::{Grow, Step, Sweep, SweepReport};

/// `barrage bench`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// What this machine does without a server: loopback connections, one processor that only sends.
    Limit(Limit),
    /// Viewers in rooms, messages at a steady rate: deliveries a second, what is lost, how late they are.
    Fanout(Fanout),
    /// `fanout` over growing rates, rooms or sessions, until p99 passes a bound.
    Sweep(Sweep),
    /// From publishing to the last receiver at a light load, and where that time goes.
    Pipeline(Pipeline),
    /// The table of the targets from the results of `make bench`, and BENCHMARKS.md.
    Report(Document),
    /// Sessions in rooms that only send heartbeats: memory a session, CPU while nothing happens.
    Idle(Idle),
    /// Sessions that come as fast as it goes, drop at once and come back: sessions a second, time until joined, CPU.
    Storm(Storm),
    /// What `fanout`, `idle` and `storm` start: reads a plan on standard input.
    #[command(hide = true)]
    Worker,
}

impl Command {
    /// Measures, and prints what was measured on standard output. `commit` is the build's, for the record.
    ///
    /// # Errors
    /// [`Error`] where it could not be measured, and where the server did not deliver everything in order.
    pub fn run(&self, commit: &str) -> Result<(), Error> {
        match self {
            Self::Limit(limit) => limit.run(commit),
            Self::Fanout(fanout) => fanout.run(commit),
            Self::Sweep(sweep) => sweep.run(commit),
            Self::Pipeline(pipeline) => pipeline.run(commit),
            Self::Report(document) => document.run(),
            Self::Idle(idle) => idle.run(commit),
            Self::Storm(storm) => storm.run(commit),
            Self::Worker => workers::run().map_err(Error::Worker),
        }
    }
}
