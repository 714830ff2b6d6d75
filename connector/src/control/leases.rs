//! What this node writes to Routes, and what it reads there for its viewers: the lease, its sessions and numbers
//! ([`super::registry`]), the numbers of the whole cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::cluster::{Displace, gate_request};
use routes::{By, Change, LEASE_SECONDS, Lease, Routes};
use rustc_hash::FxHashMap;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Control;
use super::gate::Asker;
use crate::engine::event::Input;

/// Changes in one call.
const CHANGES_MAX: usize = 500;
/// Numbers in one call.
const COUNTS_MAX: usize = 1000;
/// Between two calls: what gathers meanwhile goes together, and a node that registers everything anew after Routes were
/// lost does it at 25,000 sessions a second.
const PAUSE: Duration = Duration::from_millis(20);
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait for an answer: less than a third of the lease, so that a renewal has three tries.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How often viewers' numbers are read.
const ONLINE_EVERY: Duration = Duration::from_secs(2);

/// Renews the lease until `stop`. Whoever finds it gone has everything written anew.
pub(super) async fn renew(control: Arc<Control>, routes: Arc<dyn Routes>, lease: Lease, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_secs(LEASE_SECONDS) / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
                ..lease.clone()
            }
        };
        let renewed = tokio::time::timeout(CALL_TIMEOUT, routes.renew(&lease)).await;
        control.leased.store(matches!(renewed, Ok(Ok(_))), Ordering::Relaxed);
        match renewed {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
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
            let (changes, counts) = (state.registry.take(CHANGES_MAX), state.registry.take_counts(COUNTS_MAX));
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
            tokio::select! {
                () = stop.cancelled() => {}
                () = control.write.notified() => tokio::time::sleep(PAUSE).await,
            }
            continue;
        }
        let written = changes.is_empty() || apply(&control, &*routes, changes).await;
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
async fn apply(control: &Control, routes: &dyn Routes, changes: Vec<Change>) -> bool {
    match tokio::time::timeout(CALL_TIMEOUT, routes.apply(&changes)).await {
        Ok(Ok(displaced)) => {
            control.metrics.routes_written.inc_by(changes.len() as u64);
            for (key, route) in displaced {
                let by = changes.iter().rev().find_map(|change| match change {
                    Change::Put(By::Key(put), route) if *put == key => Some(route.session.clone()),
                    _ => None,
                });
                let displace = Displace { session: route.session, by: by.unwrap_or_default() };
                control.ask_logic(Asker::Control, None, gate_request::Ask::Displace(displace));
            }
            true
        }
        failed => {
            if let Ok(Err(error)) = failed {
                tracing::warn!(%error, "routes are not written");
            }
            control.lock().registry.put_back(changes);
            false
        }
    }
}

/// Tells the cores how many are in their channels over the whole cluster, until `stop`.
pub(super) async fn online(control: Arc<Control>, routes: Arc<dyn Routes>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(ONLINE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // By channel: the number that was told, and to which cores.
    let mut told: FxHashMap<Arc<str>, (u64, Vec<usize>)> = FxHashMap::default();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let held: FxHashMap<Arc<str>, Vec<usize>> = {
            let state = control.lock();
            state.holder.channels().map(|(name, cores)| (name.clone(), cores.collect())).collect()
        };
        told.retain(|channel, _| held.contains_key(channel));
        let channels: Vec<_> = held.keys().collect();
        for channels in channels.chunks(COUNTS_MAX) {
            let names: Vec<String> = channels.iter().map(|channel| channel.to_string()).collect();
            let Ok(Ok(counts)) = tokio::time::timeout(CALL_TIMEOUT, routes.counts(&names)).await else { break };
            let mut news: Vec<Vec<(String, u64)>> = Vec::new();
            for ((channel, name), count) in channels.iter().zip(names).zip(counts) {
                let cores = &held[*channel];
                let (last, whom) = told.entry((*channel).clone()).or_insert((u64::MAX, Vec::new()));
                for &core in cores.iter().filter(|core| *last != count || !whom.contains(core)) {
                    if news.len() <= core {
                        news.resize_with(core + 1, Vec::new);
                    }
                    news[core].push((name.clone(), count));
                }
                (*last, *whom) = (count, cores.clone());
            }
            let mut state = control.lock();
            for (core, numbers) in news.into_iter().enumerate().filter(|(_, numbers)| !numbers.is_empty()) {
                state.ports.may(core, Input::Online(numbers));
            }
        }
    }
}
