//! This logic's lease: connectors find it by that.

use std::sync::Arc;
use std::time::Duration;

use routes::{LEASE_SECONDS, Lease, Routes};
use tokio_util::sync::CancellationToken;

use crate::penalty::Penalties;

/// How often penalties are looked at while they are being read, before there is a lease.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Takes the lease when this logic is ready to serve, renews it, and gives it back at `stop`.
pub(crate) async fn hold(routes: Arc<dyn Routes>, lease: Lease, penalties: Arc<Penalties>, stop: CancellationToken) {
    while penalties.ready().is_err() {
        if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
            return;
        }
    }
    let mut renewals = tokio::time::interval(Duration::from_secs(LEASE_SECONDS) / 3);
    renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(renewals.tick()).await.is_some() {
        // A logic that stopped learning penalties lets its lease lapse: connectors dial another.
        if penalties.ready().is_ok()
            && let Err(away) = routes.renew(&lease).await
        {
            tracing::warn!(%away, "the lease was not renewed");
        }
    }
    if let Err(away) = routes.resign(&lease.node, &lease.incarnation).await {
        tracing::warn!(%away, "the lease was not given back: it lapses by itself");
    }
}
