//! `idle` and `storm`: sessions that come, stay and go, and carry no messages of their own.
//!
//! ```text
//!   idle, storm ─▶ fleet ─orders─▶ workers, a process each: crowd ─▶ told ─▶ fleet
//! ```

pub(crate) mod crowd;
pub(crate) mod fleet;
pub(crate) mod idle;
pub(crate) mod order;
pub(crate) mod storm;
