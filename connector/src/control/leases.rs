//! What this node writes to Routes, and what it reads there for its viewers: the lease, its sessions and numbers
//! ([`super::registry`]), the numbers of the whole cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::cluster::{Displace, gate_request};
use routes::{Change, LEASE_SECONDS, Lease, Routes};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::gate::Asker;
use super::registry::change_of;
use super::{Control, ControlState};
use engine::RouteChanges;
use engine::event::Input;

/// Numbers in one call, and that are told in one go: the thread does nothing else meanwhile.
const COUNTS_MAX: usize = 1000;
/// Numbers that are read each time: in Redis a command for each shard that they are of. A node that has n channels is
/// through in n / 4096 times [`ONLINE_EVERY`] (10,000: six seconds), so that what 50 nodes with the same channels read is
/// bounded.
const NUMBERS_A_TICK: usize = 4096;
/// Between two calls: what gathers meanwhile goes together, and a node that registers everything anew after Routes were
/// lost does it at 25,000 sessions a second.
const PAUSE: Duration = Duration::from_millis(20);
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait for an answer: less than a third of the lease, so that a renewal has three tries.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How often viewers' numbers are read.
const ONLINE_EVERY: Duration = Duration::from_secs(2);
/// Channels that are read exactly each time: in Redis a row for each node that has the channel, so that 50 nodes with the
/// same channels read 80,000 rows a second, an eighth of its core. A node that has n channels is through in n / 64 times [`ONLINE_EVERY`]
/// (10,000: five minutes), and no number is wrong for longer than two rounds of any one node after another died.
const EXACT_A_TICK: usize = 64;

/// Renews the lease until `stop`. Whoever finds it gone has everything written anew.
pub(super) async fn renew(control: Arc<Control>, routes: Arc<dyn Routes>, lease: Lease, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(LEASE_SECONDS) / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The lease was marked complete, and has stood since.
    let mut complete = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            () = control.renew_now.notified() => {}
        }
        let lease = {
            let state = control.lock();
            Lease {
                sessions: state.registry.session_count(),
                addresses: state.registry.address_count(),
                open: !control.draining.load(Ordering::Relaxed),
                job: None,
                ..lease.clone()
            }
        };
        let renewed = tokio::time::timeout(CALL_TIMEOUT, routes.renew(&lease)).await;
        let leased = matches!(renewed, Ok(Ok(_)));
        control.leased.store(leased, Ordering::Relaxed);
        control.known.fetch_or(leased, Ordering::Relaxed);
        match renewed {
            // Beside no renewal: a lease that is taken anew meanwhile must not be marked.
            Ok(Ok(true)) => {
                if control.lock().registry.is_written() && !complete {
                    let call = timeout(CALL_TIMEOUT, routes.complete(&lease.node, &lease.incarnation)).await;
                    complete = matches!(call, Ok(Ok(())));
                }
            }
            Ok(Ok(false)) => {
                complete = false;
                control.lock().registry.anew();
                control.write.notify_one();
            }
            Ok(Err(error)) => {
                control.metrics.lease_failures.inc();
                tracing::warn!(%error, "the lease is not renewed");
            }
            Err(_) => {
                control.metrics.lease_failures.inc();
                tracing::warn!("the lease is not renewed: routes do not answer");
            }
        }
    }
}

/// Writes changes as they come, until `stop` and then what is left.
pub(super) async fn write(
    control: Arc<Control>,
    routes: Arc<dyn Routes>,
    node: String,
    incarnation: String,
    stop: CancellationToken,
) {
    loop {
        let (changes, counts) = {
            let mut state = control.lock();
            let (changes, counts) = (state.registry.take(), state.registry.take_counts(COUNTS_MAX));
            for (core, from) in state.registry.more() {
                state.ports.must(core, Input::Routes { from });
            }
            control.note_behind(&state);
            (changes, counts)
        };
        if changes.is_empty() && counts.is_empty() {
            if stop.is_cancelled() {
                return;
            }
            if control.lock().registry.idle() {
                control.renew_now.notify_one();
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = control.write.notified() => tokio::time::sleep(PAUSE).await,
            }
            continue;
        }
        let written = changes.is_empty() || apply(&control, &*routes, &node, &incarnation, changes).await;
        let counted = counts.is_empty() || {
            let call = tokio::time::timeout(CALL_TIMEOUT, routes.count(&node, &incarnation, &counts)).await;
            let counted = matches!(call, Ok(Ok(())));
            if !counted {
                control.lock().registry.put_back_counts(counts);
            }
            counted
        };
        if written && counted {
            tokio::time::sleep(PAUSE).await;
        } else if stop.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
            // The lease is given back next, and all of it with that.
            return;
        }
    }
}

/// `false`: not written, and put back.
async fn apply(control: &Control, routes: &dyn Routes, node: &str, incarnation: &str, batch: RouteChanges) -> bool {
    let changes: Vec<Change> = batch.iter().map(|change| change_of(change, node, incarnation)).collect();
    match tokio::time::timeout(CALL_TIMEOUT, routes.apply(&changes)).await {
        Ok(Ok(displaced)) => {
            control.metrics.routes_written.inc_by(changes.len() as u64);
            for (_, route) in displaced {
                let displace = Displace { session: route.session };
                control.ask_logic(Asker::Control, None, gate_request::Ask::Displace(displace));
            }
            true
        }
        failed => {
            if let Ok(Err(error)) = failed {
                tracing::warn!(%error, "routes are not written");
            }
            control.lock().registry.put_back(batch);
            false
        }
    }
}

/// Tells the cores how many are in their channels over the whole cluster, until `stop`. What is read costs Routes the
/// same however many nodes have a channel; what nodes left there that died silently goes as [`put_right`] meets it.
pub(super) async fn online(control: Arc<Control>, routes: Arc<dyn Routes>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(ONLINE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let channels = || control.lock().holder.channels().cloned().collect();
    let (mut exact, mut written) = (Vec::new(), Vec::new());
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        put_right(&*routes, &mut exact, channels).await;
        let due = due(&mut written, NUMBERS_A_TICK, channels);
        let call = tokio::time::timeout(CALL_TIMEOUT, routes.written_counts(&due)).await;
        let Ok(Ok(counts)) = call else {
            written.extend(due);
            continue;
        };
        for (channels, counts) in due.chunks(COUNTS_MAX).zip(counts.chunks(COUNTS_MAX)) {
            tell(&control, channels, counts);
            tokio::task::yield_now().await;
        }
    }
}

/// Reads some of the channels exactly, which puts right what Routes say of them to everyone.
async fn put_right(routes: &dyn Routes, round: &mut Vec<Arc<str>>, channels: impl FnOnce() -> Vec<Arc<str>>) {
    let due = due(round, EXACT_A_TICK, channels);
    if due.is_empty() {
        return;
    }
    let names: Vec<String> = due.iter().map(ToString::to_string).collect();
    if !matches!(tokio::time::timeout(CALL_TIMEOUT, routes.live_counts(&names)).await, Ok(Ok(_))) {
        round.extend(due);
    }
}

/// The channels whose turn it is. A round goes over all that were there when it began, and then begins anew.
fn due(round: &mut Vec<Arc<str>>, at_once: usize, channels: impl FnOnce() -> Vec<Arc<str>>) -> Vec<Arc<str>> {
    if round.is_empty() {
        // No room is kept from a time of more channels.
        *round = channels();
        // Nodes that have the same channels are to be at different ones.
        let at = rand::random_range(0..=round.len());
        round.rotate_left(at);
    }
    round.split_off(round.len().saturating_sub(at_once))
}

/// Tells numbers to the cores that have the channel and do not know. What finds no room is told the next time.
fn tell(control: &Control, channels: &[Arc<str>], counts: &[u64]) {
    let mut state = control.lock();
    let ControlState { holder, ports, .. } = &mut *state;
    let mut news: Vec<Vec<(String, u64)>> = vec![Vec::new(); ports.len()];
    for (channel, &count) in channels.iter().zip(counts) {
        holder.online(channel, count, |core| {
            let room = ports.has_room(core);
            if room {
                news[core].push((channel.to_string(), count));
            }
            room
        });
    }
    for (core, numbers) in news.into_iter().enumerate().filter(|(_, numbers)| !numbers.is_empty()) {
        ports.may(core, Input::Online(numbers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_turn_once_a_round() {
        let channels: Vec<Arc<str>> = (0..3 * EXACT_A_TICK + 1).map(|n| format!("room:{n}").into()).collect();
        let mut round = Vec::new();
        for _ in 0..3 {
            let next = |_| due(&mut round, EXACT_A_TICK, || channels.clone());
            let mut met: Vec<Arc<str>> = (0..4).flat_map(next).collect();
            met.sort_unstable();
            met.dedup();
            assert!(met.len() == channels.len() && round.is_empty());
        }
        assert!(due(&mut round, EXACT_A_TICK, Vec::new).is_empty());
    }
}
