//! What every driver must do, over real sockets: one suite, run against each [`Kind`].
//!
//! The machine under it ([`probe::Probe`]) echoes or sends what it is told, reports everything as an ask, and panics at
//! an event of a connection that is not there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "driver/bytes.rs"]
mod bytes;
#[path = "driver/listening.rs"]
mod listening;
mod probe;
#[path = "driver/processes.rs"]
mod processes;
#[path = "driver/queues.rs"]
mod queues;

use connector::driver::Kind;

macro_rules! suite {
    ($($driver:ident: $kind:expr;)+) => {$(
        mod $driver {
            suite!(tests of $kind =>
                bytes:
                    every_byte_arrives_at_a_peer_that_reads_late
                    small_sends_arrive_and_so_does_the_last_before_a_close
                    what_goes_to_many_at_once_is_each_ones_own_affair
                    a_reset_in_mid_frame_ends_that_connection_only
                    what_came_before_a_half_close_is_answered
                    many_who_send_more_than_there_are_buffers_for_lose_nothing
                    a_close_delivers_the_last_bytes_to_a_peer_that_still_sends
                    a_paused_peer_is_not_read_from;
                processes:
                    ten_thousand_connect_at_once
                    without_descriptors_accepting_waits_and_goes_on;
                queues:
                    an_input_wakes_an_idle_core
                    a_slot_may_be_given_away_before_its_connection_is_closed
                    slots_are_used_again_and_events_never_mixed_up
                    a_full_queue_gives_the_input_back
                    asks_that_are_given_back_come_again
                    a_drained_core_ends_and_its_address_is_free;
                listening:
                    every_address_has_its_own_index
                    an_address_that_is_taken_is_refused
                    connections_go_to_the_core_that_holds_fewer
                    a_core_that_is_held_up_keeps_few_waiting
                    a_core_that_stops_loses_nobody_who_was_handed_to_it;
            );
        }
    )+};
    (tests of $kind:expr => $($topic:ident: $($test:ident)+;)+) => {$($(
        #[test]
        fn $test() {
            if super::is_here($kind) {
                super::$topic::$test($kind);
            }
        }
    )+)+};
}

suite! {
    monoio: connector::driver::Kind::Monoio;
    uring: connector::driver::Kind::Uring;
}

/// Whether the system permits this driver. Where it has to (CI=true), a refusal is a failure.
fn is_here(kind: Kind) -> bool {
    let Err(error) = kind.choose() else { return true };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{kind}: {error}");
    println!("SKIPPED: {kind}: {error}");
    false
}

#[cfg(feature = "glommio")]
suite! {
    glommio: connector::driver::Kind::Glommio;
}
