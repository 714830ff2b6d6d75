//! How many descriptors the process may have: one for each client.

use std::io;

/// Raises the process's soft limit of open descriptors to its hard one, and returns it. The soft one is 1,024 on many
/// systems (for programs that use `select`), the hard one half a million.
///
/// # Errors
/// The system's; the limit is then what it was.
#[expect(unsafe_code, reason = "libc's getrlimit and setrlimit take pointers")]
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid `rlimit` that outlives the call, which writes nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above; the call only reads it.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}
