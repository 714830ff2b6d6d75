//! Readers outside of any group, each a client of librdkafka's that is assigned one partition.

use super::consumer::{
    Context, SKIPS_MAX, TAKE_MAX, drop_elsewhere, is_out_of_range, passing, reading_client, record, resolve,
};
use super::{Cluster, blocking, unavailable};
use crate::{Error, Offset, Reader, Record, Start, Topic};
use async_trait::async_trait;
use futures::FutureExt;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset as Place;
use std::sync::Arc;
use tokio::sync::watch;

/// A reader outside of any group.
pub(super) struct Lone {
    cluster: Arc<Cluster>,
    topic: Topic,
    partition: u32,
    client: Option<Arc<StreamConsumer<Context>>>,
    next: i64,
    /// The position was out of range, or skipped over: to be found again.
    lost: bool,
    /// How often `next` was skipped over.
    skips: u32,
    refused: watch::Receiver<Option<String>>,
}

impl Lone {
    pub(super) async fn new(cluster: &Arc<Cluster>, topic: Topic, partition: u32, start: Start) -> Result<Self, Error> {
        cluster.partition(topic, partition)?;
        let client = reading_client(cluster, topic)?;
        let mut lone = Self {
            cluster: cluster.clone(),
            topic,
            partition,
            client: Some(client),
            next: 0,
            lost: true,
            skips: 0,
            refused: cluster.refused.subscribe(),
        };
        lone.seek(start).await?;
        Ok(lone)
    }

    fn client(&self) -> &Arc<StreamConsumer<Context>> {
        self.client.as_ref().expect("there until it is dropped")
    }

    async fn seek(&mut self, start: Start) -> Result<(), Error> {
        let (cluster, topic, partition) = (self.cluster.clone(), self.topic, self.partition);
        let offset = blocking(move || Ok(resolve(&cluster, topic, &[(partition, start)])?[0])).await?;
        let mut list = TopicPartitionList::new();
        let name = self.cluster.name(topic);
        list.add_partition_offset(&name, partition as i32, Place::Offset(offset)).map_err(unavailable)?;
        self.client().assign(&list).map_err(unavailable)?;
        self.next = offset;
        self.lost = false;
        Ok(())
    }
}

#[async_trait]
impl Reader for Lone {
    async fn next(&mut self) -> Result<Vec<Record>, Error> {
        loop {
            if let Some(why) = self.refused.borrow_and_update().clone() {
                return Err(Error::Refused(why));
            }
            if self.lost {
                self.seek(Start::At(self.next as Offset + 1)).await?;
            }
            let client = self.client().clone();
            let mut message = tokio::select! {
                message = client.recv() => message,
                _ = self.refused.changed() => continue,
            };
            let mut records = Vec::new();
            loop {
                match message {
                    // As in a member: nothing that is in the log may be skipped.
                    Ok(message) if message.offset() > self.next && self.skips < SKIPS_MAX => {
                        self.skips += 1;
                        self.lost = true;
                    }
                    Ok(message) if message.offset() >= self.next => {
                        self.skips = 0;
                        self.next = message.offset() + 1;
                        records.push(record(&message));
                    }
                    Ok(_) => {}
                    Err(error) if is_out_of_range(&error) => self.lost = true,
                    Err(error) => passing(&self.cluster, &error)?,
                }
                if records.len() >= TAKE_MAX || self.lost {
                    break;
                }
                match client.recv().now_or_never() {
                    Some(more) => message = more,
                    None => break,
                }
            }
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            drop_elsewhere(client);
        }
    }
}
