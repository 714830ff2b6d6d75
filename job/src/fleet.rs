//! The other nodes: this job's own lease, and a link to each connector that holds one.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use proto::config::Cluster;
use routes::{JobLease, Lease, Role, Routes};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::link::{self, Attachment, Dial, Switchboard};
use crate::metrics::Metrics;
use crate::partition::StreamId;
use crate::ready::Ready;
use crate::silence::{LOOK_EVERY, Silence};

/// A connector that has not put all its sessions for so long is not waited for: it cannot reach Routes, and pushes to all
/// others must not wait for it. A million sessions are put in 40 s.
const LACKING_MAX: Duration = Duration::from_secs(60);
/// On a graceful end the last renewal of the lease has this long.
const PARTING_MAX: Duration = Duration::from_secs(1);

/// The attached connectors, by incarnation, and the numbers of sessions in their leases.
#[derive(Clone)]
pub(crate) struct Fleet(Arc<FleetState>);

struct FleetState {
    attached: RwLock<HashMap<String, Attachment>>,
    sessions: RwLock<HashMap<String, u64>>,
    /// The partitions that this job has, by topic, for its lease.
    owns: RwLock<BTreeMap<String, Vec<u32>>>,
    last: AtomicU64,
    /// Connectors that had not put all their sessions: since when, and when that was seen last.
    lacking: Mutex<HashMap<String, (Instant, Instant)>>,
    metrics: Arc<Metrics>,
}

impl Fleet {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let (attached, sessions, owns) = (RwLock::default(), RwLock::default(), RwLock::default());
        Self(Arc::new(FleetState {
            attached,
            sessions,
            owns,
            last: AtomicU64::new(0),
            lacking: Mutex::default(),
            metrics,
        }))
    }

    /// The incarnations of the connectors whose streams stand.
    pub(crate) fn attached(&self) -> Vec<String> {
        self.0.attached.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Whether all these connectors have put all their sessions, as Routes say. One that has not for [`LACKING_MAX`] is
    /// not waited for.
    pub(crate) fn are_complete(&self, attached: &[String], complete: &[String]) -> bool {
        let now = Instant::now();
        let mut lacking = self.0.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        lacking.retain(|incarnation, (_, last)| {
            !complete.contains(incarnation) && now.duration_since(*last) < LACKING_MAX
        });
        // Without a stream it is not known which connectors there are.
        let mut whole = !attached.is_empty();
        for incarnation in attached.iter().filter(|incarnation| !complete.contains(incarnation)) {
            let (first, last) = lacking.entry(incarnation.clone()).or_insert((now, now));
            *last = now;
            whole &= now.duration_since(*first) >= LACKING_MAX;
        }
        whole
    }

    /// The stream of the connector of this incarnation, if it stands.
    pub(crate) fn find(&self, incarnation: &str) -> Option<Attachment> {
        self.0.attached.read().unwrap_or_else(PoisonError::into_inner).get(incarnation).cloned()
    }

    /// All attached streams, each with its connector's number of sessions.
    pub(crate) fn all(&self) -> Vec<(Attachment, u64)> {
        let sessions = self.0.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let attached = self.0.attached.read().unwrap_or_else(PoisonError::into_inner);
        attached
            .iter()
            .map(|(name, attachment)| (attachment.clone(), sessions.get(name).copied().unwrap_or(0)))
            .collect()
    }

    /// This job has these partitions of a topic: its lease says so.
    pub(crate) fn owns(&self, topic: &str, partitions: Vec<u32>) {
        let mut owns = self.0.owns.write().unwrap_or_else(PoisonError::into_inner);
        if owns.get(topic) != Some(&partitions) {
            owns.insert(topic.to_owned(), partitions);
        }
    }

    /// Keeps the lease, and a link to each connector's lease, until job stops; the lease is given back by
    /// whoever waits for the end. The owners are told the partitions of jobs that have fallen silent. `looked` turns true
    /// when the connectors of the start are attached, or have had their time.
    pub(crate) async fn keep(
        self,
        cluster: Cluster,
        routes: Arc<dyn Routes>,
        dial: Dial,
        ready: Ready,
        looked: watch::Sender<bool>,
    ) {
        let mut links: HashMap<String, watch::Sender<Option<String>>> = HashMap::new();
        let mut tasks = JoinSet::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut renewed, mut read) = (true, true);
        let (mut beat, mut silence, begun) = (0, Silence::new(&cluster.incarnation), Instant::now());
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = dial.stop.cancelled() => break,
            }
            beat += 1;
            let owns = self.0.owns.read().unwrap_or_else(PoisonError::into_inner).clone();
            match routes.renew(&lease(&cluster, JobLease { beat, owns })).await {
                Ok(_) => renewed = true,
                // Said once, not four times a second for as long as it lasts.
                Err(error) if std::mem::take(&mut renewed) => tracing::warn!(%error, "the lease was not renewed"),
                Err(_) => {}
            }
            let nodes = routes.nodes().await;
            ready.routes_are(nodes.as_ref().map(drop).map_err(ToString::to_string));
            match nodes {
                Ok(leases) => {
                    read = true;
                    for (topic, partitions) in silence.look(std::time::Instant::now(), &leases) {
                        dial.events.orphaned(&topic, partitions).await;
                    }
                    self.look(leases, &mut links, &mut tasks, &dial);
                }
                // Standing streams stay; broken ones are dialled at the address that is known.
                Err(error) if std::mem::take(&mut read) => tracing::warn!(%error, "the leases cannot be read"),
                Err(_) => {}
            }
            while tasks.try_join_next().is_some() {}
            let waiting = links.keys().any(|incarnation| self.find(incarnation).is_none());
            if !*looked.borrow() && (!waiting || begun.elapsed() > Duration::from_secs(2)) {
                looked.send_replace(true);
            }
        }
        // What it gives up now, the group hands on: nobody is to take it over because this lease stands still.
        let parting = lease(&cluster, JobLease { beat: beat + 1, owns: BTreeMap::new() });
        if !matches!(tokio::time::timeout(PARTING_MAX, routes.renew(&parting)).await, Ok(Ok(_))) {
            tracing::debug!("the lease still says what this job had");
        }
        while tasks.join_next().await.is_some() {}
    }

    fn look(
        &self,
        leases: Vec<Lease>,
        links: &mut HashMap<String, watch::Sender<Option<String>>>,
        tasks: &mut JoinSet<()>,
        dial: &Dial,
    ) {
        let connectors: HashMap<String, Lease> = leases
            .into_iter()
            .filter(|lease| lease.role == Role::Connector && !lease.grpc.is_empty())
            .map(|lease| (lease.incarnation.clone(), lease))
            .collect();
        links.retain(|incarnation, address| {
            if !connectors.contains_key(incarnation) {
                address.send_replace(None);
            }
            // Ended: begun anew below if the lease has come back.
            !address.is_closed()
        });
        for (incarnation, lease) in &connectors {
            let address = links.entry(incarnation.clone()).or_insert_with(|| {
                let (address, watched) = watch::channel(Some(lease.grpc.clone()));
                tasks.spawn(link::keep(dial.clone(), self.clone(), incarnation.clone(), watched));
                address
            });
            address.send_if_modified(|known| {
                let changed = known.as_ref() != Some(&lease.grpc);
                *known = Some(lease.grpc.clone());
                changed
            });
        }
        let mut sessions = self.0.sessions.write().unwrap_or_else(PoisonError::into_inner);
        *sessions = connectors.into_iter().map(|(incarnation, lease)| (incarnation, lease.sessions)).collect();
    }
}

impl Switchboard for Fleet {
    fn number(&self) -> StreamId {
        self.0.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn attach(&self, incarnation: &str, attachment: Attachment) {
        let mut attached = self.0.attached.write().unwrap_or_else(PoisonError::into_inner);
        attached.insert(incarnation.to_owned(), attachment);
        self.0.metrics.connectors.set(attached.len() as i64);
    }

    fn detach(&self, incarnation: &str, stream: StreamId) {
        let mut attached = self.0.attached.write().unwrap_or_else(PoisonError::into_inner);
        if attached.get(incarnation).is_some_and(|attachment| attachment.stream == stream) {
            attached.remove(incarnation);
        }
        self.0.metrics.connectors.set(attached.len() as i64);
    }
}

fn lease(cluster: &Cluster, job: JobLease) -> Lease {
    Lease {
        node: cluster.node.clone(),
        incarnation: cluster.incarnation.clone(),
        role: Role::Job,
        grpc: String::new(),
        clients: Vec::new(),
        sessions: 0,
        addresses: 0,
        open: true,
        job: Some(job),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::config::Secret;
    use rpc::secret::SecretInterceptor;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::link::Events;

    #[tokio::test]
    async fn a_job_that_ends_has_nothing_to_be_taken_over() {
        #[derive(serde::Deserialize)]
        struct File {
            routes: routes::Config,
        }
        let file: File = toml::from_str(include_str!("../../config/barrage.toml")).expect("the shipped file is read");
        let routes = routes::open(&file.routes).expect("routes in memory");
        let secret = Secret::new("a secret of thirty-two characters");
        let interceptor = SecretInterceptor::new(&secret).expect("ASCII");
        let stop = CancellationToken::new();
        let events = Events::default();
        let incarnation = "incarnation".to_owned();
        let dial = Dial { incarnation, secret: interceptor, queue_bytes_max: 1 << 20, events, stop: stop.clone() };
        let cluster = Cluster { node: "job-1".into(), incarnation: "incarnation".into(), secret };
        let fleet = Fleet::new(Arc::default());
        fleet.owns("rooms", vec![1, 2]);
        let (looked, _) = watch::channel(false);
        let keeping = tokio::spawn(fleet.keep(cluster, routes.clone(), dial, Ready::default(), looked));
        let owns = async || {
            let leases = routes.nodes().await.expect("they are in memory");
            leases.into_iter().find_map(|lease| Some(lease.job?.owns))
        };
        let said = async {
            while owns().await != Some(BTreeMap::from([("rooms".to_owned(), vec![1, 2])])) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), said).await.expect("the lease says what the job has");
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(30), keeping).await.expect("it ends").expect("without a panic");
        assert_eq!(owns().await, Some(BTreeMap::new()));
    }
}
