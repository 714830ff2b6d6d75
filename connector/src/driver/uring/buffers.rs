//! The buffers that all receiving connections of a core share: the kernel takes one when bytes have come, never before
//! (`io_uring_register_buf_ring(3)`).
//!
//! Invariant: a [`Buffer`] is the only name of its bytes from the completion that brought it until it is given back,
//! and only then is the kernel shown it again.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Buffers of a core; a power of two. When they are all filled, receiving ends with ENOBUFS and who meets that is read
/// from with plain calls until it is empty.
pub(super) const COUNT: u16 = 512;
/// Of one buffer: a browser's upgrade request fits, and almost everything after it. What one connection can take of
/// them at a stroke (the kernel goes on for 32 of them) is then 64 KiB of 1 MiB.
pub(super) const BYTES: usize = 2048;
/// Bytes of the ring itself, before the first buffer.
const RING_BYTES: usize = COUNT as usize * size_of::<BufRingEntry>();
const MAP_BYTES: usize = RING_BYTES + COUNT as usize * BYTES;
const _: () = assert!(COUNT.is_power_of_two() && COUNT <= 1 << 15 && RING_BYTES.is_multiple_of(4096));

/// A filled buffer. It has to be given back.
#[derive(Debug)]
#[must_use]
pub(super) struct Buffer {
    id: u16,
    len: u16,
}

impl Buffer {
    /// What a completion with these numbers has brought. To be called once for each.
    pub(super) fn filled(id: u16, len: usize) -> Self {
        assert!(id < COUNT && len <= BYTES, "the kernel fills no buffer that it was not given");
        Self { id, len: len as u16 }
    }

    /// Whether it ended before the bytes did.
    pub(super) fn is_full(&self) -> bool {
        self.len as usize == BYTES
    }
}

/// Ring and buffers: one mapping.
pub(super) struct Buffers {
    base: NonNull<u8>,
    tail: u16,
}

#[expect(unsafe_code, reason = "memory that the kernel writes to")]
impl Buffers {
    /// All of them, to be filled. Touched at once, so that a core's memory does not grow with its first traffic.
    pub(super) fn new() -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a fresh mapping that replaces none.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), MAP_BYTES, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("the system maps nothing at 0 unasked");
        let mut this = Self { base, tail: 0 };
        for id in 0..COUNT {
            this.give_back(Buffer { id, len: 0 });
        }
        Ok(this)
    }

    /// Where the ring is: to be registered.
    pub(super) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The bytes that came.
    pub(super) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        let at = RING_BYTES + buffer.id as usize * BYTES;
        // SAFETY: `at + len` lies in the mapping (`Buffer::filled`), which lives as long as `self`; the kernel has
        // handed the buffer over and is shown it again by `give_back` only, which takes the `Buffer`; other buffers'
        // bytes do not overlap. All of it is initialized: the mapping was zero.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at), buffer.len as usize) }
    }

    /// Lets the kernel fill it again.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        let entries = self.base.cast::<BufRingEntry>().as_ptr();
        let address = self.address() + (RING_BYTES + buffer.id as usize * BYTES) as u64;
        // SAFETY: the mapping begins with `COUNT` entries, aligned to a page; the one at `tail` is not the kernel's
        // until the tail passes it, as no more than `COUNT` buffers exist. Zeroed bytes are a valid entry.
        let entry = unsafe { &mut *entries.add((self.tail % COUNT) as usize) };
        entry.set_addr(address);
        entry.set_len(BYTES as u32);
        entry.set_bid(buffer.id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is a u16 in the first entry, which the kernel only reads; nobody here holds a reference to it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

#[expect(unsafe_code, reason = "memory that the kernel writes to")]
impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, unmapped only here; `Ring` sees to it that the kernel is done.
        unsafe { libc::munmap(self.base.as_ptr().cast(), MAP_BYTES) };
    }
}
