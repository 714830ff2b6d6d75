//! A member looks after its clients: one that does not recover though the brokers answer is replaced.

use super::context::{group_client, reading_client};
use super::{Behind, Member, Owned, drop_elsewhere};
use crate::kafka::Cluster;
use crate::{Error, Topic};
use rdkafka::consumer::Consumer as _;
use std::time::{Duration, Instant};

/// How long a group client may be without an answer of its group, while the brokers answer, before it is replaced: the
/// longest rebalance, and a session on top.
const GROUP_STUCK: Duration = Duration::from_secs(45);
/// How long the reading client may bring nothing, while the brokers answer, before it is asked whether there is more; and
/// then, before it is replaced.
const READER_STUCK: Duration = Duration::from_secs(5);

impl Member {
    /// Looks after the clients: what failed is sent again, what does not recover is replaced.
    pub(super) fn look_after(&mut self, now: Instant) -> Result<(), Error> {
        let waiting = !self.group().context().commits().is_empty();
        if waiting && self.quiet.due().is_none() {
            self.quiet.change(now);
        }
        let there = self.cluster.there_for().unwrap_or_default();
        if there > GROUP_STUCK && self.unsettled.is_some_and(|since| now - since > GROUP_STUCK) {
            tracing::error!(group = self.group, "a member's client does not come back into its group: it is made anew");
            let new = group_client(&self.cluster, self.topic, &self.group)?;
            // What is to be committed goes along.
            *new.context().commits() = std::mem::take(&mut *self.group().context().commits());
            self.unsettled = Some(now);
            let lost: Vec<u32> = self.owned.iter().filter(|(_, owned)| !owned.adopted).map(|(&p, _)| p).collect();
            self.lost(&lost);
            if let Some(clients) = &mut self.clients {
                drop_elsewhere(std::mem::replace(&mut clients.group, new));
            }
        }
        if there > READER_STUCK && now - self.progress > READER_STUCK && self.ends.is_none() {
            self.progress = now;
            let reading = |(&partition, owned): (&u32, &Owned)| {
                owned
                    .next
                    .filter(|_| owned.fetching && !owned.paused && owned.from.is_none())
                    .map(|next| (partition, next))
            };
            let reading: Vec<Behind> = self.owned.iter().filter_map(reading).collect();
            if !reading.is_empty() {
                let (cluster, topic) = (self.cluster.clone(), self.topic);
                self.ends = Some(tokio::task::spawn_blocking(move || behind(&cluster, topic, reading)));
            }
        }
        Ok(())
    }

    /// Replaces the reading client if it brought nothing of what was there at the last question.
    pub(super) fn judge_reader(&mut self, behind: Vec<Behind>) -> Result<(), Error> {
        let stuck = behind.iter().find(|one| self.behind.contains(one)).copied();
        self.behind = behind;
        let Some((partition, next)) = stuck else { return Ok(()) };
        tracing::error!(
            group = self.group,
            partition,
            next,
            "a client reads nothing though there is more: it is made anew"
        );
        let new = reading_client(&self.cluster, self.topic)?;
        if let Some(clients) = &mut self.clients {
            drop_elsewhere(std::mem::replace(&mut clients.reader, new));
        }
        for owned in self.owned.values_mut() {
            owned.fetching = false;
            if let Some(next) = owned.next {
                owned.search_again(next);
            }
        }
        self.behind.clear();
        Ok(())
    }
}

/// Those of `reading` that have more than was read. Blocking.
fn behind(cluster: &Cluster, topic: Topic, reading: Vec<Behind>) -> Result<Vec<Behind>, Error> {
    let partitions: Vec<u32> = reading.iter().map(|one| one.0).collect();
    let ends = cluster.asker.ends(&cluster.name(topic), &partitions)?;
    Ok(reading.into_iter().zip(ends).filter(|((_, next), end)| end > next).map(|(one, _)| one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Kafka;
    use crate::kafka::consumer::list;
    use crate::support::{DEADLINE, Seen, kafka, publish, soon};
    use crate::{Bus, Start};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use tokio_util::sync::CancellationToken;

    /// The bus on a Kafka with few partitions; `None` where it cannot be had.
    async fn opened() -> Option<Kafka> {
        let mut config = kafka::shared()?.config();
        config.partitions = 4;
        Some(tokio::time::timeout(DEADLINE, Kafka::open(&config, CancellationToken::new())).await.unwrap().unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reading_client_that_brings_nothing_is_replaced() {
        let Some(bus) = opened().await else { return };
        let mut member = soon(Member::join(&bus.cluster, Topic::Rooms, "job")).await.unwrap();
        let mut seen = Seen::default();
        for partition in 0..4 {
            publish(&bus, Topic::Rooms, partition, "x", 5).await;
        }
        seen.until(&mut member, |_| Start::At(1), |seen| seen.count() == 20).await;
        // The client stands still, and the member does not know it.
        let stuck = member.reader().clone();
        stuck.pause(&list(&member.name, 0..4)).unwrap();
        for partition in 0..4 {
            publish(&bus, Topic::Rooms, partition, "y", 5).await;
        }
        seen.until(&mut member, |_| Start::At(1), |seen| seen.count() == 40).await;
        assert!(!Arc::ptr_eq(&stuck, member.reader()), "another client");
        for records in seen.records.values() {
            assert!(records.iter().map(|record| record.offset).eq(1..=10), "each once, in order");
        }
        // What is paused on purpose is not behind.
        let right = member.reader().clone();
        (0..4).for_each(|partition| crate::Consumer::pause(&mut member, partition, true));
        publish(&bus, Topic::Rooms, 0, "z", 1).await;
        let reading = tokio::time::timeout(3 * READER_STUCK, crate::Consumer::next(&mut member)).await;
        assert!(reading.is_err() && Arc::ptr_eq(&right, member.reader()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_that_delivers_nothing_is_replaced() {
        let Some(bus) = opened().await else { return };
        publish(&bus, Topic::Rooms, 0, "x", 10).await;
        bus.producing.stuck.store(bus.producing.number.load(Ordering::Relaxed), Ordering::Relaxed);
        publish(&bus, Topic::Rooms, 0, "y", 10).await;
        assert_eq!(bus.producing.number.load(Ordering::Relaxed), 2);
        // The new one is not taken for the old one.
        publish(&bus, Topic::Rooms, 0, "z", 10).await;
        assert_eq!(bus.producing.number.load(Ordering::Relaxed), 2);
        assert_eq!(soon(bus.bounds(Topic::Rooms, 0)).await.unwrap(), (1, 31));
    }
}
