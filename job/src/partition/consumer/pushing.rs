//! What a stage without an order of its own asks for: names looked up in Routes beside the loop, and pushes to the
//! connectors, outside of any partition's order.

use bus::Offset;
use prost::Message as _;
use proto::cluster::PushOut;
use proto::cluster::from_owner::Frame as ToConnector;
use routes::By;

use super::{Consumer, Done, LOOK_UP_MAX, RETRY};
use crate::link::Attachment;
use crate::partition::{Action, LookedUp, Stage};

impl<S: Stage> Consumer<S> {
    /// Looks names up in Routes, once; the stage decides whether to ask again.
    pub(super) fn look_up(&mut self, partition: u32, names: Vec<By>) {
        let Some(part) = self.parts.get(&partition) else { return };
        let (routes, fleet, turn) = (self.routes.clone(), self.fleet.clone(), part.turn);
        self.waiting.push(Box::pin(async move {
            // Before the answer: a connector that comes meanwhile is not asked for.
            let attached = fleet.attached();
            let found = match tokio::time::timeout(LOOK_UP_MAX, routes.look_up(&names)).await {
                Ok(Ok(found)) => {
                    let sessions =
                        |routes: Vec<routes::SessionRoute>| routes.into_iter().map(|route| route.session).collect();
                    let whole = fleet.are_complete(&attached, &found.complete);
                    Some(LookedUp { sessions: found.sessions.into_iter().map(sessions).collect(), whole })
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "sessions to push to cannot be found now");
                    None
                }
                Err(_) => None,
            };
            Done::LookedUp { partition, turn, found }
        }));
    }

    /// Commits, and then does what must be done at most once.
    pub(super) fn hand_over(&mut self, partition: u32, through: Offset, actions: Vec<Action>) {
        let Some(part) = self.parts.get(&partition).filter(|_| !self.ending) else { return };
        let turn = part.turn;
        self.handing_over += 1;
        let committing = self.consumer.commit_now(partition, through);
        self.waiting.push(Box::pin(async move {
            let durable = match committing.await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(partition, %error, "pushes wait: their checkpoint is not taken");
                    tokio::time::sleep(RETRY).await;
                    false
                }
            };
            Done::Committed { partition, turn, through, actions, durable }
        }));
    }

    /// To the connector of this incarnation. An unknown one has gone, or its stream is down: at most once.
    pub(super) fn push(&self, incarnation: &str, body: ToConnector) {
        match self.fleet.find(incarnation) {
            Some(attachment) => self.push_to(&attachment, body),
            None => drop(self.config.metrics.pushes_unattached.inc()),
        }
    }

    /// To every connector, each with its share of the pace.
    pub(super) fn push_all(&self, out: &PushOut) {
        let connectors = self.fleet.all();
        let sessions: Vec<u64> = connectors.iter().map(|(_, sessions)| *sessions).collect();
        for ((attachment, _), share) in connectors.iter().zip(shares(out.sessions_per_s, &sessions)) {
            self.push_to(attachment, ToConnector::Push(PushOut { sessions_per_s: share, ..out.clone() }));
        }
    }

    fn push_to(&self, attachment: &Attachment, body: ToConnector) {
        let bytes = match &body {
            ToConnector::Push(push) => push.encoded_len(),
            ToConnector::Command(command) => command.encoded_len(),
            _ => 0,
        };
        let taken = attachment.outbox.with(|outbox| {
            let taken = outbox.push_out(body, bytes);
            outbox.wake();
            taken
        });
        match taken {
            true => self.config.metrics.pushes.inc(),
            false => self.config.metrics.pushes_dropped.inc(),
        };
    }
}

/// Each connector's share of a pace by its sessions, at least 1 a second; 0 is no pace. Without a session anywhere they
/// share alike (leases are some seconds old).
fn shares(per_s: u32, sessions: &[u64]) -> Vec<u32> {
    let total: u64 = sessions.iter().sum();
    let share = |&own: &u64| match (per_s, total) {
        (0, _) => 0,
        (_, 0) => (per_s / sessions.len().max(1) as u32).max(1),
        _ => u32::try_from((u128::from(per_s) * u128::from(own)).div_ceil(u128::from(total))).unwrap_or(per_s).max(1),
    };
    sessions.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn a_pace_is_shared_by_sessions() {
        assert_eq!(shares(0, &[5, 0]), [0, 0]);
        assert_eq!(shares(1000, &[300, 100, 0]), [750, 250, 1]);
        assert_eq!(shares(1000, &[0, 0]), [500, 500]);
        assert_eq!(shares(u32::MAX, &[u64::MAX / 2, 1]), [u32::MAX, 1]);
        assert!(shares(7, &[]).is_empty());
    }
}
