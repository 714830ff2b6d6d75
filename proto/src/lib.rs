//! The wire: the message types of `schema/`, and the sans-IO codecs that turn bytes into frames and back. No runtime, no
//! socket, no clock: who owns those feeds the codecs bytes in any split and takes frames that borrow them.
//!
//! ```text
//!   first bytes ─▶ sniff ─▶ proxy (then anew)
//!                    ├────▶ http ─▶ websocket ─▶ native (binary, JSON)
//!                    │    deflate ┘     └──────▶ packet ─▶ sniff::auth ─▶ goim | bilibili
//!                    ├────▶ native (TCP)
//!                    └────▶ packet (TCP) ─▶ as above
//! ```
//!
//! Each codec's fuzz body lies beside it (`*_fuzz.rs`): tests run it on a few inputs, `fuzz/` on millions.
#![forbid(unsafe_code)]

/// The packages of `schema/`, nested as their names are, since the generated code refers to its neighbours by them.
mod barrage {
    #![allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in schema/"
    )]
    macro_rules! package {
        ($name:ident: $($file:literal),+) => {
            pub mod $name {
                pub mod v1 {
                    $(include!(concat!(env!("OUT_DIR"), "/barrage.", stringify!($name), ".v1", $file));)+
                }
            }
        };
    }
    package!(api: ".rs");
    package!(client: ".rs", ".serde.rs");
    package!(cluster: ".rs");
    package!(record: ".rs");
}
pub use barrage::api::v1 as api;
pub use barrage::client::v1 as client;
pub use barrage::cluster::v1 as cluster;
pub use barrage::record::v1 as record;

/// Whether a fuzz run asks for this bug, to show that its target would find it (`scripts/fuzz-planted.sh`). Without the
/// feature, which nothing that is shipped has, it is `false` at compile time.
#[cfg(feature = "fuzz")]
macro_rules! planted {
    ($bug:literal) => {
        crate::fuzz::planted($bug)
    };
}
#[cfg(not(feature = "fuzz"))]
macro_rules! planted {
    ($bug:literal) => {
        false
    };
}

pub mod bilibili;
pub mod channel;
pub mod config;
pub mod deflate;
pub mod error;
mod gap;
pub mod goim;
pub mod http;
pub mod json;
mod members;
pub mod native;
pub mod operation;
pub mod packet;
pub mod proxy;
pub mod ready;
pub mod sniff;
pub mod topic;
pub mod websocket;

macro_rules! fuzz_bodies {
    ($($name:ident)+) => {
        $(
            #[cfg(any(test, feature = "fuzz"))]
            #[doc(hidden)]
            pub mod $name;
        )+
    };
}
// For `fuzz/` and the smoke tests.
fuzz_bodies! { fuzz bilibili_fuzz deflate_fuzz goim_fuzz http_fuzz native_fuzz packet_fuzz sniff_fuzz websocket_fuzz }
#[cfg(test)]
mod websocket_tests;

/// The newest record that this code reads: a record with a larger `min_reader` pauses its partition.
pub const RECORD_VERSION: u32 = 1;

/// Recent messages of a room that its owner and each core keep, and the most that a client may ask for on joining.
pub const RECENT_MESSAGES: usize = 200;
/// The same in bytes: whichever is reached first (rule 2).
pub const RECENT_BYTES: usize = 64 * 1024;

/// Bounds of the buckets that all services count durations in, seconds: ten a decade (the R10 series of preferred
/// numbers), from what a wake-up takes to what is a fault, so that a percentile read off them is within an eighth.
pub const SECONDS_BUCKETS: [f64; 51] = [
    0.0001, 0.000125, 0.00016, 0.0002, 0.00025, 0.00032, 0.0004, 0.0005, 0.00063, 0.0008, 0.001, 0.00125, 0.0016,
    0.002, 0.0025, 0.0032, 0.004, 0.005, 0.0063, 0.008, 0.01, 0.0125, 0.016, 0.02, 0.025, 0.032, 0.04, 0.05, 0.063,
    0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32, 0.4, 0.5, 0.63, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.3, 8.0,
    10.0,
];

/// The encoded descriptors of all of `schema/`: gRPC reflection reads them, and `rpc` makes its stubs from them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
