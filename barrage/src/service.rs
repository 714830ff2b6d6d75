//! Starts the services that a role consists of, and stops them gracefully.
//!
//! ```text
//!   settings ─▶ bus, routes ─▶ logic ─▶ job ─▶ connector ─▶ admin      SIGTERM ─▶ connector drains ─▶ the rest ends
//! ```
//!
//! `barrage run` gives all three the same bus and routes in memory, and lets them speak the same gRPC over loopback as
//! on machines of their own.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use proto::ready::serves;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::admin;
use crate::settings::{Loaded, Log, LogFormat, Role, Settings, Sources};
use crate::stdout::say;

/// How long a service may take to end beyond its own plan, until the process leaves all the same.
const END: Duration = Duration::from_secs(15);

/// Runs the services of `role` until SIGTERM or SIGINT; a second signal ends at once.
///
/// # Errors
/// The configuration is refused, or a service cannot start or fails.
pub(crate) fn run(role: Role, sources: &Sources) -> anyhow::Result<()> {
    let loaded = sources.load(role)?;
    log_to_stderr(&loaded.settings.log)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?
        .block_on(serve(role, loaded))
}

fn log_to_stderr(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.level).with_context(|| format!("log.level = {:?}", log.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// A service that runs: its name, what tells it to end, and its end.
type Service = (&'static str, CancellationToken, BoxFuture<'static, anyhow::Result<()>>);

/// A token for each stage of the end: whoever takes messages in goes before whoever hands them on.
#[derive(Default)]
struct Stops {
    connector: CancellationToken,
    logic: CancellationToken,
    job: CancellationToken,
    stores: CancellationToken,
}

async fn serve(role: Role, loaded: Loaded) -> anyhow::Result<()> {
    let Loaded { mut settings, cluster, own_origins } = loaded;
    let as_role = |service: Role| {
        let mut cluster = cluster.clone();
        if role == Role::Run {
            // Three leases in one process.
            cluster.node = format!("{}-{}", cluster.node, service.name());
        }
        cluster
    };
    let stops = Stops::default();
    let mut registry = Registry::with_prefix("barrage");
    let mut ready: Vec<(&'static str, admin::Ready)> = Vec::new();
    let mut running: Vec<Service> = Vec::new();
    let mut addresses: Vec<(&'static str, String)> = Vec::new();

    let routes = routes::open(&settings.routes)?;
    let bus = match role {
        Role::Connector => None,
        _ => Some(bus::open(&settings.bus, stops.stores.clone()).await.context("the bus cannot be opened")?),
    };
    if let Some(bus) = bus.as_ref().filter(|_| role.is(Role::Logic)) {
        let logic = logic::start(
            settings.logic.clone(),
            as_role(Role::Logic),
            Arc::clone(bus),
            Arc::clone(&routes),
            &mut registry,
            stops.logic.clone(),
        )
        .await
        .context("logic cannot start")?;
        addresses.push(("page", format!("http://{}/", logic.http)));
        if own_origins {
            let port = logic.http.port();
            settings.connector.origins = vec![format!("http://{}", logic.http), format!("http://localhost:{port}")];
        }
        addresses.push(("logic-grpc", logic.grpc.to_string()));
        let readiness = logic.readiness();
        ready.push((
            "logic",
            Box::new(move || {
                let readiness = readiness.clone();
                Box::pin(async move { readiness.functions().await })
            }),
        ));
        running.push((
            "logic",
            stops.logic.clone(),
            Box::pin(async move {
                logic.join().await;
                Ok(())
            }),
        ));
    }
    if let Some(bus) = bus.as_ref().filter(|_| role.is(Role::Job)) {
        let job = job::start(
            settings.job.clone(),
            as_role(Role::Job),
            Arc::clone(bus),
            Arc::clone(&routes),
            &mut registry,
            stops.job.clone(),
        )
        .await
        .context("job cannot start")?;
        let readiness = job.readiness();
        ready.push(("job", Box::new(move || Box::pin(std::future::ready(readiness())))));
        running.push(("job", stops.job.clone(), Box::pin(async move { Ok(job.join().await?) })));
    }
    if role.is(Role::Connector) {
        let connector = connector::start(
            settings.connector.clone(),
            as_role(Role::Connector),
            Arc::clone(&routes),
            &mut registry,
            stops.connector.clone(),
        )
        .await
        .context("the connector cannot start")?;
        let clients: Vec<String> = connector.clients.iter().map(ToString::to_string).collect();
        addresses.push(("clients", clients.join(" ")));
        addresses.push(("connector-grpc", connector.grpc.to_string()));
        let readiness = connector.readiness();
        ready.push(("connector", Box::new(move || Box::pin(std::future::ready(readiness())))));
        running.push((
            "connector",
            stops.connector.clone(),
            Box::pin(async move {
                connector.join().await;
                Ok(())
            }),
        ));
    }
    let ready = Arc::new(ready);
    let admin = admin::start(&settings.admin_listen(role), registry, Arc::clone(&ready), stops.stores.clone()).await?;
    addresses.push(("admin", format!("http://{admin}/")));

    announce(role, &addresses, &settings);
    let announcing = tokio::spawn(announce_ready(ready));
    let ended = tokio::select! {
        (name, ended) = first_to_end(&mut running) => {
            running.retain(|(running, ..)| *running != name);
            Err(match ended {
                Ok(()) => anyhow::anyhow!("{name} ended by itself"),
                Err(error) => error.context(format!("{name} ended")),
            })
        }
        signalled = signalled() => signalled,
    };
    announcing.abort();
    // The connector first: its clients go elsewhere while all the rest still answers.
    running.reverse();
    for (name, stop, joined) in running {
        stop.cancel();
        let within = if name == "connector" { Duration::from_secs(settings.connector.drain_s) + END } else { END };
        tokio::select! {
            joined = tokio::time::timeout(within, joined) => match joined {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(service = name, error = format!("{error:#}"), "ended badly"),
                Err(_) => tracing::warn!(service = name, seconds = within.as_secs(), "did not end in time"),
            },
            _ = signalled() => anyhow::bail!("ended at once by a second signal"),
        }
    }
    stops.stores.cancel();
    ended
}

/// The first service that ends although nobody asked it to.
async fn first_to_end(running: &mut [Service]) -> (&'static str, anyhow::Result<()>) {
    let (ended, which, _) = futures::future::select_all(running.iter_mut().map(|(_, _, joined)| joined)).await;
    (running[which].0, ended)
}

/// SIGTERM or SIGINT.
async fn signalled() -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// How often the services are asked whether they are ready, until they are.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// Says `ready` when all services are.
async fn announce_ready(services: admin::Services) {
    for (_, ready) in services.iter() {
        while serves(&ready().await).is_err() {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
    // Nobody may be able to hear it: that is no reason not to serve.
    let _ = say("ready");
}

/// Says where to look, a name and its value on each line: for people, and for who started us. [`announce_ready`]
/// follows.
fn announce(role: Role, addresses: &[(&'static str, String)], settings: &Settings) {
    let mut lines = vec![format!("barrage {} {}", env!("CARGO_PKG_VERSION"), role.name())];
    for (name, address) in addresses {
        lines.push(format!("  {name:<14} {address}"));
    }
    if role == Role::Run {
        lines.push(
            "  send           curl -d hello '<page>goim/push/room?operation=1000&type=live&room=1000'".to_owned(),
        );
        lines.push("  watch          barrage tail 1000".to_owned());
        lines
            .push(format!("  token          barrage token 42    (guests: {:?})", settings.logic.guests).to_lowercase());
    }
    let _ = say(&lines.join("\n"));
}
