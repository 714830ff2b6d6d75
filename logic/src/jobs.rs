//! Whether anybody delivers what this logic publishes: the jobs' leases. What is published without a job is accepted, and
//! waits in the bus; that must not go unsaid.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use routes::{LEASE_SECONDS, Lease, Role, Routes};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How often the leases are looked at. A job's ends a lease after its last renewal.
const LOOK_EVERY: Duration = Duration::from_secs(LEASE_SECONDS / 3);
/// Without a job for so long nobody delivers: after a wipe of Redis the leases are back within a third of one, and a job
/// that is replaced leaves none for a moment.
const ABSENT_MAX: Duration = Duration::from_secs(LEASE_SECONDS / 2);

/// The jobs that there are, as their leases tell.
pub(crate) struct Jobs {
    metrics: Metrics,
    absent: AtomicBool,
}

impl Jobs {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics, absent: AtomicBool::new(false) }
    }

    /// # Errors
    /// That nobody delivers.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match self.absent.load(Ordering::Relaxed) {
            true => Err("no job runs: what is published is accepted and not delivered".to_owned()),
            false => Ok(()),
        }
    }

    /// Looks at the leases until `stop`.
    pub(crate) async fn watch(self: Arc<Self>, routes: Arc<dyn Routes>, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut since = None;
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            // Without Routes nothing is known of the jobs: it stays as it was.
            if let Ok(nodes) = routes.nodes().await {
                self.look(&nodes, Instant::now(), &mut since);
            }
        }
    }

    /// Notes what the leases say; logs it once when it begins to matter, and when it ends.
    fn look(&self, nodes: &[Lease], now: Instant, since: &mut Option<Instant>) {
        let jobs = nodes.iter().filter(|node| node.role == Role::Job).count();
        self.metrics.jobs.set(jobs as i64);
        if jobs > 0 {
            *since = None;
            if self.absent.swap(false, Ordering::Relaxed) {
                tracing::info!(jobs, "a job runs again: what was published is delivered");
            }
        } else if now.duration_since(*since.get_or_insert(now)) >= ABSENT_MAX
            && !self.absent.swap(true, Ordering::Relaxed)
        {
            tracing::error!("no job runs: what is published is accepted, waits in the bus and reaches nobody");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_job_for_some_seconds_it_is_said_that_nobody_delivers() {
        let jobs = Jobs::new(Metrics::new(&mut prometheus_client::registry::Registry::default()));
        let lease = |role| Lease {
            node: "n".into(),
            incarnation: "i".into(),
            role,
            grpc: String::new(),
            clients: Vec::new(),
            sessions: 0,
            addresses: 0,
            open: true,
            job: None,
        };
        let (start, mut since) = (Instant::now(), None);
        jobs.look(&[lease(Role::Job)], start, &mut since);
        jobs.look(&[lease(Role::Logic)], start, &mut since);
        assert_eq!(jobs.ready(), Ok(()), "it may be about to be replaced");
        jobs.look(&[lease(Role::Logic)], start + ABSENT_MAX, &mut since);
        assert!(jobs.ready().unwrap_err().contains("no job"));
        jobs.look(&[lease(Role::Job)], start + 2 * ABSENT_MAX, &mut since);
        assert_eq!(jobs.ready(), Ok(()));
    }
}
