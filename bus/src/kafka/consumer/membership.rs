//! What a member has: what the group gave and took, what it lost and keeps until the group has decided.

use super::context::Change;
use super::{Member, list};
use crate::{Event, Topic};
use rdkafka::consumer::Consumer as _;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How long what was lost is read on after the group's first word that does not give it back: in a first round the group
/// may not have heard of all its members. Under the second after which an owner claims again what another one claimed.
const KEPT_MAX: Duration = Duration::from_millis(900);

impl Member {
    /// The next partition that came or went.
    pub(super) fn change(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.kept_until.is_some_and(|until| until <= Instant::now()) {
                self.kept_until = None;
                let kept: Vec<u32> = self.owned.iter().filter(|(_, owned)| owned.kept).map(|(&p, _)| p).collect();
                self.revoked(&kept);
                continue;
            }
            let change = {
                let context = self.group().context();
                context.changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?
            };
            match change {
                Change::Assigned(partitions) => self.assigned(&partitions),
                Change::Revoked(partitions) => {
                    // The group deals anew: what this member gets comes behind.
                    self.unsettled = Some(Instant::now());
                    self.revoked(&partitions);
                }
                Change::Lost(partitions) => self.lost(&partitions),
            }
        }
    }

    fn assigned(&mut self, partitions: &[u32]) {
        self.unsettled = None;
        for &partition in partitions {
            if let Some(owned) = self.owned.get_mut(&partition)
                && std::mem::take(&mut owned.kept)
            {
                continue;
            }
            // What was adopted is being read, and goes on.
            self.owned.entry(partition).or_default().adopted = false;
            self.events.push_back(Event::Assigned(partition));
        }
        if self.kept_until.is_none() && self.owned.values().any(|owned| owned.kept) {
            self.kept_until = Some(Instant::now() + KEPT_MAX);
        }
    }

    fn revoked(&mut self, partitions: &[u32]) {
        for &partition in partitions {
            if self.give_up(partition) {
                self.events.push_back(Event::Revoked(partition));
            }
        }
    }

    /// Forgets all of a partition; whether it was there.
    pub(super) fn give_up(&mut self, partition: u32) -> bool {
        let Some(owned) = self.owned.remove(&partition) else { return false };
        if owned.fetching
            && let Err(error) = self.reader().incremental_unassign(&list(&self.name, [partition]))
        {
            tracing::error!(%error, partition, "kafka unassign");
        }
        self.left.remove(&partition);
        // What was committed since it was given up.
        self.group().context().commits().remove(&partition);
        self.read.retain(|read| read.0 != partition);
        true
    }

    pub(super) fn lost(&mut self, partitions: &[u32]) {
        self.unsettled = Some(Instant::now());
        // Claims decide who owns a room's partition, so that two may read it for a moment. Nothing decides that of the others.
        if self.topic != Topic::Rooms {
            return self.revoked(partitions);
        }
        let session = Duration::from_millis(self.cluster.config.kafka.session_timeout_ms.into());
        if self.cluster.awake.slept(2 * session) {
            tracing::warn!(group = self.group, "this process stood still, and its group goes on without it");
            return self.revoked(partitions);
        }
        tracing::info!(
            group = self.group,
            partitions = partitions.len(),
            "the group is lost: its partitions are read on"
        );
        for partition in partitions {
            if let Some(owned) = self.owned.get_mut(partition) {
                owned.kept = true;
            }
        }
        self.kept_until = None;
    }
}
