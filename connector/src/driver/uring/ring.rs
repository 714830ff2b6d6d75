//! One io_uring with one ring of buffers: requests in, completions out. The only place that is `unsafe` with them.
//!
//! Of the requests none points to memory of ours except through the registered buffers, which live as long as a request
//! may fill them; so everyone may make them.
//!
//! Invariants:
//! - no request is lost for want of room: what the queue does not take waits in `waiting`;
//! - the buffers are unmapped only when no request is in flight.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::buffers::{self, Buffer, Buffers};
use super::token::Token;

/// Requests that the queue takes before the kernel is called: what a turn makes, and the many of a storm go in pieces.
const REQUESTS: u32 = 1024;
/// Completions that wait to be looked at; over it the kernel keeps them in a list of its own and gives them later
/// (IORING_FEAT_NODROP), which costs it memory and time, so this covers all shared buffers and an ENOBUFS for as many
/// connections again and again.
const COMPLETIONS: u32 = 8 * 1024;
/// The one group of buffers.
const GROUP: u16 = 0;
/// Multishot, and not before something has come: almost every connection is silent when it is asked
/// (`io_uring_prep_recv_multishot(3)`, linux/io_uring.h).
const RECEIVE: u16 = IORING_RECV_MULTISHOT | IORING_RECVSEND_POLL_FIRST;
const IORING_RECVSEND_POLL_FIRST: u16 = 1 << 0;
const IORING_RECV_MULTISHOT: u16 = 1 << 1;
const IORING_ENTER_GETEVENTS: u32 = 1 << 0;

/// What became of a request.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) token: Token,
    /// What the system call would have returned; negative: the error's number.
    pub(super) result: i32,
    /// Not its last completion.
    pub(super) more: bool,
    /// What came, to be given back.
    pub(super) buffer: Option<Buffer>,
}

pub(super) struct Ring {
    ring: IoUring,
    buffers: ManuallyDrop<Buffers>,
    /// What the kernel's queue had no room for.
    waiting: VecDeque<squeue::Entry>,
    /// To be closed when the kernel has taken all requests: one that waits names its file by the descriptor's number,
    /// which the next accepted connection gets.
    closing: Vec<OwnedFd>,
    /// Requests whose last completion has not been seen.
    in_flight: usize,
}

#[expect(unsafe_code, reason = "io_uring shares memory with the kernel")]
impl Ring {
    /// To be made on the thread that uses it: only that one may (IORING_SETUP_SINGLE_ISSUER).
    ///
    /// # Errors
    /// The system's: EPERM where io_uring is switched off or refused, EINVAL where the kernel is too old, ENOMEM.
    pub(super) fn new() -> io::Result<Self> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(REQUESTS)?;
        let parameters = ring.params();
        if !parameters.is_feature_nodrop() || !parameters.is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let buffers = Buffers::new()?;
        // SAFETY: the mapping begins with so many entries and is unmapped only after it was unregistered (`drop`).
        unsafe { ring.submitter().register_buf_ring_with_flags(buffers.address(), buffers::COUNT, GROUP, 0)? };
        Ok(Self {
            ring,
            buffers: ManuallyDrop::new(buffers),
            waiting: VecDeque::new(),
            closing: Vec::new(),
            in_flight: 0,
        })
    }

    /// Receives into shared buffers, again and again, until a completion without `more`.
    pub(super) fn receive(&mut self, socket: impl AsFd, token: Token) {
        let entry = opcode::Recv::new(Fd(socket.as_fd().as_raw_fd()), std::ptr::null_mut(), 0)
            .buf_group(GROUP)
            .ioprio(RECEIVE)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        self.push(entry, token);
    }

    /// Completes once when one of `events` (`poll(2)`) is so, which it may be already.
    pub(super) fn poll(&mut self, file: impl AsFd, events: i16, token: Token) {
        self.push(opcode::PollAdd::new(Fd(file.as_fd().as_raw_fd()), events as u32).build(), token);
    }

    /// Completes at each of `events`, until a completion without `more`.
    pub(super) fn poll_each(&mut self, file: impl AsFd, events: i16, token: Token) {
        self.push(opcode::PollAdd::new(Fd(file.as_fd().as_raw_fd()), events as u32).multi(true).build(), token);
    }

    /// Ends a request, unless it has ended; its last completion comes all the same.
    pub(super) fn cancel(&mut self, target: Token, token: Token) {
        self.push(opcode::AsyncCancel::new(target.pack()).build(), token);
    }

    fn push(&mut self, entry: squeue::Entry, token: Token) {
        self.in_flight += 1;
        let entry = entry.user_data(token.pack());
        // SAFETY: none of the requests made above points to memory of ours; buffers come from the registered group, and
        // the kernel takes hold of a descriptor's file when it takes the request.
        if !self.waiting.is_empty() || unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.waiting.push_back(entry);
            self.fill();
        }
    }

    /// Closes `fd` when no request that waits names it. Requests in flight keep its file open until they end.
    pub(super) fn close(&mut self, fd: OwnedFd) {
        self.closing.push(fd);
    }

    /// Moves what waits into the kernel's queue, as far as that has room.
    fn fill(&mut self) {
        while let Some(entry) = self.waiting.front() {
            // SAFETY: as in `push`.
            if unsafe { self.ring.submission().push(entry) }.is_err() {
                match self.ring.submit() {
                    Ok(taken) if taken > 0 => continue,
                    // Completions have to be looked at first.
                    _ => return,
                }
            }
            self.waiting.pop_front();
        }
    }

    /// Hands the requests over and, if there is nothing yet, waits so long for the first completion.
    ///
    /// # Errors
    /// The system's, where the ring is not usable any more.
    pub(super) fn enter(&mut self, wait: Duration) -> io::Result<()> {
        self.fill();
        if !self.closing.is_empty() {
            if !self.ring.submission().is_empty() {
                or_later(self.ring.submit())?;
            }
            if self.waiting.is_empty() && self.ring.submission().is_empty() {
                self.closing.clear();
            }
        }
        let entered = if wait.is_zero() {
            let requests = self.ring.submission().len() as u32;
            // `submit` would leave out GETEVENTS, without which the kernel does none of the work that it has put off.
            // SAFETY: no argument is passed; the requests are as in `push`.
            unsafe { self.ring.submitter().enter::<()>(requests, 0, IORING_ENTER_GETEVENTS, None) }
        } else {
            let wait = Timespec::from(wait);
            self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&wait))
        };
        or_later(entered)
    }

    /// Moves up to `most` completions to `list`, and says whether there are more.
    pub(super) fn completions(&mut self, most: usize, list: &mut Vec<Completion>) -> bool {
        let mut queue = self.ring.completion();
        for entry in queue.by_ref().take(most) {
            let (result, flags) = (entry.result(), entry.flags());
            let more = cqueue::more(flags);
            self.in_flight -= usize::from(!more);
            let buffer = cqueue::buffer_select(flags).map(|id| Buffer::filled(id, result.max(0) as usize));
            list.push(Completion { token: Token::unpack(entry.user_data()), result, more, buffer });
        }
        !queue.is_empty()
    }

    /// Requests whose last completion has not come.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The bytes that came.
    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.buffers.bytes(buffer)
    }

    /// Lets the kernel fill it again.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        self.buffers.give_back(buffer);
    }
}

/// Nothing came in time, a signal came, or completions have to be looked at or memory to be had first: no failure.
fn or_later(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

#[expect(unsafe_code, reason = "io_uring shares memory with the kernel")]
impl Drop for Ring {
    fn drop(&mut self) {
        // Else they stay mapped: only a core that ends with a panic comes here with requests in flight.
        if self.in_flight == 0 && self.ring.submitter().unregister_buf_ring(GROUP).is_ok() {
            // SAFETY: dropped here only, and used no more.
            unsafe { ManuallyDrop::drop(&mut self.buffers) };
        }
    }
}
