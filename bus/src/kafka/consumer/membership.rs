//! What a member has: what the group gave and took, what it lost and keeps until the group has decided.

use super::context::{Change, commit_list};
use super::{Member, list};
use crate::Event;
use rdkafka::consumer::{CommitMode, Consumer as _};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How long a partition that changes hands after an outage waits for the last commit of whoever read it until then. Each
/// member sends it when it learns of the group's decision, which comes to all at once.
const HAND_OVER: Duration = Duration::from_millis(500);

impl Member {
    /// The next partition that came or went.
    pub(super) fn change(&mut self) -> Option<Event> {
        loop {
            // Partitions that another member may have read until a moment ago come when its last commits are there.
            let waits = self.hand_over_until.is_some_and(|until| until > Instant::now());
            match self.events.front() {
                Some(Event::Assigned(_)) if waits => return None,
                Some(_) => return self.events.pop_front(),
                None => self.hand_over_until = None,
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
        let was_lost = std::mem::take(&mut self.was_lost);
        self.unsettled = None;
        let others: Vec<u32> = {
            let others = self.owned.iter().filter(|(partition, owned)| owned.kept && !partitions.contains(partition));
            others.map(|(&partition, _)| partition).collect()
        };
        // The brokers take a commit of any member of the group: whoever has these now is to begin behind it.
        let last: BTreeMap<_, _> = {
            let mut commits = self.group().context().commits();
            others.iter().filter_map(|partition| commits.remove_entry(partition)).collect()
        };
        if let Some(list) = commit_list(last)
            && let Err(error) = self.group().commit(&list, CommitMode::Async)
        {
            self.cluster.reach.notice("commit", &error.to_string());
        }
        self.revoked(&others);
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
        if was_lost && !self.events.is_empty() {
            self.hand_over_until = Some(Instant::now() + HAND_OVER);
        }
    }

    fn revoked(&mut self, partitions: &[u32]) {
        for &partition in partitions {
            if !self.give_up(partition) {
                continue;
            }
            // Not told yet that it came: then nothing is to be told.
            let told = self.events.iter().position(|event| matches!(event, Event::Assigned(one) if *one == partition));
            match told {
                Some(place) => drop(self.events.remove(place)),
                None => self.events.push_back(Event::Revoked(partition)),
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

    fn lost(&mut self, partitions: &[u32]) {
        self.unsettled = Some(Instant::now());
        self.was_lost = true;
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
    }
}
