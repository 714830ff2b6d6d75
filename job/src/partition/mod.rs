//! Owning partitions of a topic: joining the group, claiming, reading again what the last owner left, answering holds,
//! committing, dead letters. The same for every topic; what a topic does with its records is its [`Stage`]'s.
//!
//! ```text
//!   bus ─events─▶ Consumer ─records, holds, ticks─▶ Owner ─records that fit─▶ Stage (rooms, pushes)
//!                    ▲  │                             │                          │
//!    streams ─events─┘  └─outboxes, commits ◀─actions─┴──────────────────────────┘
//! ```
//!
//! [`Owner`] and the stages are state machines without bus, stream or clock; [`Consumer`] is the one task of a topic
//! that has these. Invariants: those of `consumer` and `owner`, said there.

mod consumer;
mod dead_letter;
mod holds;
mod owner;
mod phase;
#[cfg(test)]
mod simulation;
mod stage;

pub(crate) use self::consumer::{Consumer, GROUP, Seams};
#[cfg(test)]
pub(crate) use self::owner::SWEEP_MS;
pub(crate) use self::owner::{Owner, OwnerConfig, THROUGH_MS};
pub(crate) use self::stage::{
    Action, Answer, Fit, HolderPosition, LookedUp, Measures, Outgoing, Stage, StreamId, Takeover,
};
