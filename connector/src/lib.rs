//! Owns client sockets and nothing else.
//!
//! `engine` decides (no socket, no clock, no runtime), `driver` moves bytes, `control` speaks gRPC to logic and job.

pub mod driver;
pub mod engine;
