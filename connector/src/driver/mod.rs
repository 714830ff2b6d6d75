//! Drivers: thin loops that own descriptors and feed a [`machine::Machine`]. One thread a core, one driver a thread.
//!
//! ```text
//!   sockets ─opened/bytes/writable/closed─▶ Machine ─round─▶ Outlet ─send(MSG_DONTWAIT)─▶ sockets
//!   control ─bounded queue + wake-up─▶ input      ask ─▶ control
//! ```
//!
//! The only place with descriptors, clocks and `unsafe`. A driver knows no protocol: the engine, and the echo example,
//! are both machines.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use futures::task::AtomicWaker;
use machine::{Machine, Next, Now};

use self::asking::Asking;

mod asking;
mod batch;
mod clock;
mod descriptors;
#[cfg(feature = "glommio")]
mod glommio;
mod limits;
mod listen;
mod monoio;
mod readiness;
mod share;
mod uring;

pub use batch::BatchedSender;
pub use descriptors::raise_descriptor_limit;
pub use listen::{Intake, Listeners, SocketOptions};
pub use share::{Balance, slack};

/// How long a driver may sleep at most, by its machine's wish, milliseconds.
fn sleep_ms(next: Next, now_ms: u64) -> u64 {
    if next.again { 0 } else { next.wake_ms.saturating_sub(now_ms).min(limits::SLEEP_MS_MAX) }
}

/// Which loop runs a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The first of the others that the system permits.
    #[default]
    Auto,
    /// The one on io_uring: Linux 6.1 or newer, where it is not switched off.
    Uring,
    /// The portable one, on the monoio crate's epoll driver.
    Monoio,
    /// The one to compare with, on the glommio crate: refused without the cargo feature `glommio`.
    Glommio,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        KINDS.iter().find(|(name, _)| *name == text).map(|&(_, kind)| kind).ok_or_else(|| {
            let names: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
            format!("one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = KINDS.iter().find(|(_, kind)| kind == self).expect("all are there");
        to.write_str(name)
    }
}

/// As configured.
const KINDS: &[(&str, Kind)] =
    &[("auto", Kind::Auto), ("uring", Kind::Uring), ("monoio", Kind::Monoio), ("glommio", Kind::Glommio)];

impl Kind {
    /// Whether it is in this binary.
    #[must_use]
    pub fn is_built(self) -> bool {
        self != Self::Glommio || glommio().is_some()
    }

    /// Tries what was asked for. Returns what it comes to, and why: for the log.
    ///
    /// # Errors
    /// The system refuses just this one, or it is not in this binary. The operator's to mend.
    pub fn choose(self) -> io::Result<(Driver, String)> {
        let permitted =
            || uring::attempt().map_err(|error| io::Error::new(error.kind(), format!("io_uring refused: {error}")));
        let asked_for = |driver| (driver, "asked for".into());
        match self {
            Self::Auto => Ok(match permitted() {
                Ok(()) => (Driver::Uring, "io_uring is permitted".into()),
                Err(refused) => (Driver::Monoio, refused.to_string()),
            }),
            Self::Uring => permitted().map(|()| asked_for(Driver::Uring)),
            Self::Monoio => Ok(asked_for(Driver::Monoio)),
            Self::Glommio => glommio().map(asked_for).ok_or_else(|| {
                let text = "not in this binary: it is built with --features connector/glommio";
                io::Error::new(io::ErrorKind::Unsupported, text)
            }),
        }
    }
}

/// A loop that is in this binary and that the system permits, as far as [`Kind::choose`] can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// [`Kind::Uring`].
    Uring,
    /// [`Kind::Monoio`].
    Monoio,
    /// [`Kind::Glommio`].
    #[cfg(feature = "glommio")]
    Glommio,
}

impl fmt::Display for Driver {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Uring => Kind::Uring,
            Self::Monoio => Kind::Monoio,
            #[cfg(feature = "glommio")]
            Self::Glommio => Kind::Glommio,
        };
        kind.fmt(to)
    }
}

fn glommio() -> Option<Driver> {
    #[cfg(feature = "glommio")]
    return Some(Driver::Glommio);
    #[cfg(not(feature = "glommio"))]
    None
}

/// Takes what a machine asked in a turn, without waiting, and returns those that there was no room for, the last ones: they
/// are offered again some milliseconds later, in the same order, before any others.
pub type Asks<A> = Box<dyn FnMut(Vec<A>) -> Vec<A> + Send>;

/// What a core has besides its machine.
pub struct Setup<A> {
    /// Names the thread.
    pub name: String,
    /// Where its connections come from.
    pub intake: Intake,
    /// Inputs that wait for the core; over it [`Port::tell`] gives them back.
    pub inputs_max: usize,
    /// Where its asks go.
    pub asks: Asks<A>,
}

/// Starts a core: a thread that runs the machine which `make` makes there, until [`Machine::done`].
///
/// # Errors
/// The system's, where it gives no thread or no poller.
pub fn spawn<M: Machine>(
    driver: Driver,
    setup: Setup<M::Request>,
    make: impl FnOnce(Now) -> M + Send + 'static,
) -> io::Result<CoreHandle<M::Input>> {
    let (sender, inputs) = bounded(setup.inputs_max);
    let wake_up = setup.intake.share.wake_up();
    let port = Port { inputs: sender, wake_up: wake_up.clone() };
    let (started, start) = bounded(1);
    let thread = std::thread::Builder::new().name(setup.name).spawn(move || {
        let begun = started.clone();
        let parts = Parts {
            inputs,
            wake_up,
            intake: setup.intake,
            asking: Asking::new(setup.asks),
            make,
            begun: move || drop(begun.send(Ok(()))),
        };
        let ran = match driver {
            Driver::Uring => uring::run(parts),
            Driver::Monoio => readiness::run::<M, monoio::Monoio>(parts),
            #[cfg(feature = "glommio")]
            Driver::Glommio => readiness::run::<M, glommio::Glommio>(parts),
        };
        if let Err(error) = ran {
            drop(started.send(Err(error)));
        }
    })?;
    start.recv().unwrap_or_else(|_| Err(io::Error::other("the core's thread ended at once")))?;
    Ok(CoreHandle { port, thread })
}

/// What a core's loop is made of, on its own thread.
struct Parts<M: Machine, F, B> {
    inputs: Receiver<M::Input>,
    wake_up: Arc<WakeUp>,
    intake: Intake,
    asking: Asking<M::Request>,
    make: F,
    /// To be called when the system has given all that the loop needs: an error after it reaches nobody.
    begun: B,
}

/// A running core.
#[derive(Debug)]
pub struct CoreHandle<I> {
    port: Port<I>,
    thread: JoinHandle<()>,
}

impl<I> CoreHandle<I> {
    /// Where to tell it something.
    #[must_use]
    pub fn port(&self) -> Port<I> {
        self.port.clone()
    }

    /// Whether its thread has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If the core did: what is left of the process is not to be trusted.
    pub fn join(self) {
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The way to tell a core something, from any thread.
#[derive(Debug)]
pub struct Port<I> {
    inputs: Sender<I>,
    wake_up: Arc<WakeUp>,
}

impl<I> Clone for Port<I> {
    fn clone(&self) -> Self {
        Self { inputs: self.inputs.clone(), wake_up: self.wake_up.clone() }
    }
}

impl<I> Port<I> {
    /// Puts `input` into the core's queue and wakes it. Never waits.
    ///
    /// # Errors
    /// `input` itself, where the queue is full or the core has ended.
    pub fn tell(&self, input: I) -> Result<(), I> {
        self.put(input)?;
        self.wake();
        Ok(())
    }

    /// Puts `input` into the core's queue. A core that sleeps does not notice before [`Port::wake`]. Never waits.
    ///
    /// # Errors
    /// `input` itself, where the queue is full or the core has ended.
    pub fn put(&self, input: I) -> Result<(), I> {
        self.inputs.try_send(input).map_err(|refused| match refused {
            TrySendError::Full(input) | TrySendError::Disconnected(input) => input,
        })
    }

    /// Wakes the core.
    pub fn wake(&self) {
        self.wake_up.wake();
    }

    /// How many more inputs its queue takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.inputs.capacity().unwrap_or(usize::MAX) - self.inputs.len()
    }
}

/// Wakes a core, once for however many things came while it was at work.
#[derive(Debug, Default)]
struct WakeUp {
    woken: AtomicBool,
    sleeper: AtomicWaker,
}

impl WakeUp {
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.sleeper.wake();
        }
    }

    /// Takes note that it rang; what came before is to be looked at after.
    fn answer(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }
}
