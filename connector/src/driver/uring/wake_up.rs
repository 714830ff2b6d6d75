//! How another thread wakes a core that sleeps in its ring: an eventfd that the ring polls.
//!
//! [`WakeUp`](super::super::WakeUp) calls it only while the core sleeps, so an awake one costs nobody a system call.
//! Nobody reads the counter: each write is an event, and it would take centuries to fill it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Wake, Waker};

use rustix::event::{EventfdFlags, eventfd};

use super::ring::Ring;
use super::token::{Kind, Token};

pub(super) const TOKEN: Token = Token { kind: Kind::WakeUp, key: machine::Key { slot: 0, generation: 0 } };

#[derive(Debug)]
pub(super) struct WakeUpDescriptor(OwnedFd);

impl WakeUpDescriptor {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(self.clone())
    }

    /// Lets it wake whoever waits for the ring.
    pub(super) fn arm(&self, ring: &mut Ring) {
        ring.poll_each(&self.0, libc::POLLIN, TOKEN);
    }
}

impl Wake for WakeUpDescriptor {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It can fail only where the counter is full, and then it wakes already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}
