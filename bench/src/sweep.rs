//! `barrage bench sweep`: `fanout` again and again with a growing load, until its p99 passes a bound or messages are
//! lost: where the curve bends, and what a delivery costs on the way there.

use std::fmt;

use serde::Serialize;

use crate::environment::Environment;
use crate::error::Error;
use crate::fanout::Fanout;
use crate::fanout::series::{Headline, Series};
use crate::figures::grouped;
use crate::plot::{self, Curve, Curves};

/// Most steps of a sweep.
const STEPS_MAX: u32 = 100;
/// Of what was expected; with less than this delivered the load is too much, whatever the latency of the rest.
const DELIVERED_MIN: f64 = 0.999;

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grow {
    /// Messages a second, and deliveries with them.
    Rate,
    /// Rooms, over the same sessions and deliveries.
    Rooms,
    /// Sessions, with the same messages a second, or deliveries where --deliveries is said.
    Viewers,
}

/// `fanout` over growing rates, rooms or sessions, until p99 passes a bound.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub struct Sweep {
    /// Of each step; the first one is as they say.
    #[command(flatten)]
    pub fanout: Fanout,
    /// What grows.
    #[arg(long, value_enum, default_value = "rate")]
    pub grow: Grow,
    /// By how much from step to step.
    #[arg(long, default_value_t = 1.5)]
    pub factor: f64,
    /// The bound, milliseconds. The step that passes it is the last one.
    #[arg(long, default_value_t = 100.0)]
    pub p99_ms: f64,
    /// The last step, if the bound is not passed before.
    #[arg(long, default_value_t = 20)]
    pub steps: u32,
}

/// The curve.
#[derive(Debug, Clone, Serialize)]
pub struct SweepReport {
    /// What was run.
    pub bench: &'static str,
    /// The machine.
    pub environment: Environment,
    /// With which options.
    pub settings: Sweep,
    /// In their order; of each the median of its runs.
    pub steps: Vec<Step>,
    /// Deliveries a second of the last step within the bound.
    pub best_per_second: Option<f64>,
}

/// One load.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Step {
    /// Messages a second.
    pub rate: f64,
    /// Rooms.
    pub rooms: u32,
    /// Sessions.
    pub viewers: u32,
    /// Deliveries a second that were asked for.
    pub asked_per_second: f64,
    /// What came of it.
    #[serde(flatten)]
    pub headline: Headline,
    /// Whether p99 is within the bound and everything delivered.
    pub within: bool,
}

impl Sweep {
    pub(crate) fn run(&self, commit: &str) -> Result<(), Error> {
        let report = self.measure(commit)?;
        let output = &self.fanout.output;
        output.printing.print(&report);
        match &output.svg {
            Some(path) => report.draw(path).map_err(|reason| Error::File { path: path.clone(), reason }),
            None => Ok(()),
        }
    }

    /// Measures; blocks until it is over.
    ///
    /// # Errors
    /// [`Error`]: the first one of a step. What is lost or late is no error here, but the curve's end.
    pub fn measure(&self, commit: &str) -> Result<SweepReport, Error> {
        let refuse = |right: bool, option, value: &dyn ToString, want: &str| {
            if right { Ok(()) } else { Err(Error::Option { option, value: value.to_string(), want: want.to_owned() }) }
        };
        refuse(self.factor.is_finite() && self.factor > 1.0, "factor", &self.factor, "more than 1")?;
        refuse((1..=STEPS_MAX).contains(&self.steps), "steps", &self.steps, "1 to 100")?;
        let unequal = self.fanout.room_sizes.len();
        refuse(unequal == 0, "room-sizes", &unequal, "none: a sweep's rooms are equal")?;
        let mut steps = Vec::new();
        for at in 0..self.steps {
            let fanout = self.step(at);
            let runs = (0..fanout.runs.max(1)).map(|_| fanout.measure(commit)).collect::<Result<Vec<_>, _>>()?;
            let headline = Series::new(runs).median;
            let rate = fanout.messages_per_s();
            let within = headline.p99 <= self.p99_ms && headline.delivered_share >= DELIVERED_MIN;
            let asked_per_second = rate * f64::from(fanout.viewers) / f64::from(fanout.rooms);
            let (rooms, viewers) = (fanout.rooms, fanout.viewers);
            let step = Step { rate, rooms, viewers, asked_per_second, headline, within };
            // Each step takes a while: it is told when it is known.
            eprintln!("{step}");
            steps.push(step);
            let grown = self.step(at + 1);
            if !within || (self.grow == Grow::Rooms && grown.rooms == fanout.rooms) {
                break;
            }
        }
        let best = steps.iter().rev().find(|step| step.within);
        Ok(SweepReport {
            bench: "sweep",
            environment: Environment::here(commit),
            settings: self.clone(),
            best_per_second: best.map(|step| step.headline.per_second),
            steps,
        })
    }

    /// The fan-out of a step.
    fn step(&self, at: u32) -> Fanout {
        let mut fanout = self.fanout.clone();
        let grown = self.factor.powi(at as i32);
        match self.grow {
            Grow::Rate => {
                fanout.rate *= grown;
                fanout.deliveries = fanout.deliveries.map(|deliveries| deliveries * grown);
            }
            Grow::Viewers => fanout.viewers = (f64::from(fanout.viewers) * grown) as u32,
            Grow::Rooms => {
                // Deliveries stay: a message goes to fewer, so there are more of them.
                let deliveries = self.fanout.messages_per_s() * f64::from(fanout.viewers) / f64::from(fanout.rooms);
                fanout.deliveries = Some(deliveries);
                fanout.rooms = ((f64::from(fanout.rooms) * grown) as u32).min(fanout.viewers);
            }
        }
        fanout
    }
}

impl SweepReport {
    fn draw(&self, path: &std::path::Path) -> Result<(), String> {
        let of = |step: &Step| match self.settings.grow {
            Grow::Rate => step.asked_per_second,
            Grow::Rooms => f64::from(step.rooms),
            Grow::Viewers => f64::from(step.viewers),
        };
        let x = match self.settings.grow {
            Grow::Rate => "deliveries/s asked for",
            Grow::Rooms => "rooms",
            Grow::Viewers => "sessions",
        };
        let line = |name: &str, value: fn(&Headline) -> f64| {
            let points = self.steps.iter().map(|step| (of(step), value(&step.headline)));
            Curve { name: name.into(), points: points.filter(|point| point.1.is_finite()).collect() }
        };
        let mut charts = vec![
            Curves {
                title: "latency from the intended time",
                x,
                y: "ms",
                lines: vec![line("p50", |line| line.p50), line("p99", |line| line.p99)],
                bound: Some(self.settings.p99_ms),
                log_x: true,
            },
            Curves {
                title: "delivered",
                x,
                y: "deliveries/s",
                lines: vec![line("deliveries/s", |line| line.per_second)],
                bound: None,
                log_x: true,
            },
        ];
        let cost = line("connector", |line| line.cpu_s_a_million);
        if !cost.points.is_empty() {
            let title = "cost of deliveries";
            charts.push(Curves { title, x, y: "CPU s a million", lines: vec![cost], bound: None, log_x: true });
        }
        plot::curves(path, &charts)
    }
}

impl Step {
    /// What stands over [`Step`]s.
    const HEAD: &str = "  messages/s    rooms  sessions";
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>12.1}{:>9}{:>10}{}{}",
            self.rate,
            grouped(self.rooms.into()),
            grouped(self.viewers.into()),
            self.headline,
            if self.within { "" } else { "  over" }
        )
    }
}

impl fmt::Display for SweepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sweep { fanout, p99_ms, .. } = &self.settings;
        writeln!(f, "sweep via {:?}: until p99 is over {p99_ms} ms; {:?}", fanout.via, fanout.dialect)?;
        writeln!(f, "{}\n", self.environment)?;
        writeln!(f, "{}{}", Step::HEAD, Headline::HEAD)?;
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        match self.best_per_second {
            Some(best) => writeln!(f, "\n  the most within the bound: {} deliveries/s", grouped(best as u64)),
            None => writeln!(f, "\n  no step is within the bound"),
        }
    }
}
