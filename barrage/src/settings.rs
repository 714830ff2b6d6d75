//! The configuration as a whole: where values come from, what is refused, and `barrage config show`.
//!
//! Flags override the environment (`BARRAGE_SECTION__KEY`), which overrides the file, which overrides the shipped
//! example `config/barrage.toml`: that is compiled in and is the only place in which a default stands.
//!
//! Invariant: nothing starts on a configuration with an unknown key or an impossible value.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use figment::providers::{Env, Format as _, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use proto::channel::is_id;
use proto::config::{Cluster, Invalid, Secret, require};
use serde::Deserialize;

use crate::identity::{host_name, incarnation, make_up_secrets};

/// The shipped example, which is the defaults.
pub(crate) const SHIPPED: &str = include_str!("../../config/barrage.toml");

/// Shortest `cluster.secret`, characters: 128 bits even where it is hexadecimal.
const SECRET_CHARACTERS_MIN: usize = 32;

/// All sections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) cluster: ClusterSection,
    pub(crate) bus: bus::Config,
    pub(crate) routes: routes::Config,
    pub(crate) connector: connector::Config,
    pub(crate) logic: logic::Config,
    pub(crate) job: job::Config,
    pub(crate) admin: Admin,
    pub(crate) log: Log,
}

/// `[cluster]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterSection {
    pub(crate) secret: Secret,
    pub(crate) node: String,
}

/// `[admin]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    /// Empty: loopback, on the role's own port.
    pub(crate) listen: String,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Which services this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// All three.
    Run,
    Connector,
    Logic,
    Job,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Connector => "connector",
            Self::Logic => "logic",
            Self::Job => "job",
        }
    }

    pub(crate) fn is(self, service: Role) -> bool {
        self == Self::Run || self == service
    }

    fn admin_port(self) -> u16 {
        match self {
            Self::Run | Self::Connector => 3199,
            Self::Logic => 3198,
            Self::Job => 3197,
        }
    }
}

/// A value that one source assigns to one key, dotted.
struct Assigned {
    source: &'static str,
    key: String,
    value: Value,
}

impl Provider for Assigned {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source)
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(figment::util::nest(&self.key, self.value.clone()).into_dict().unwrap_or_default()))
    }
}

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Sources {
    /// A TOML file; it needs only what differs from the defaults.
    #[arg(long, short, env = "BARRAGE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides one key: `--set connector.cores=1`. May be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl Sources {
    /// All sources, the lowest first.
    ///
    /// # Errors
    /// The file is not there, or an assignment is not one.
    pub(crate) fn figment(&self, role: Role) -> anyhow::Result<Figment> {
        let mut figment = Figment::from(Shipped);
        let above = self.above_the_defaults()?;
        if role == Role::Run && all_loopback(&figment.clone().merge(&above))? {
            // A newcomer needs nothing: see `make_up_secrets` for the keys.
            figment = figment.merge(Assigned {
                source: "`barrage run` on loopback",
                key: "logic.guests".to_owned(),
                value: Value::from("send"),
            });
        }
        Ok(figment.merge(above))
    }

    fn above_the_defaults(&self) -> anyhow::Result<Figment> {
        let mut figment = Figment::new();
        if let Some(file) = &self.config {
            anyhow::ensure!(file.is_file(), "there is no configuration file {}", file.display());
            figment = figment.merge(Toml::file_exact(file));
        }
        // Without the double underscore a name is not a key: BARRAGE_CONFIG names the file.
        figment = figment.merge(Env::prefixed("BARRAGE_").filter(|name| name.as_str().contains("__")).split("__"));
        for assignment in &self.set {
            let (key, value) = assignment
                .split_once('=')
                .filter(|(key, _)| !key.trim().is_empty())
                .with_context(|| format!("--set {assignment}: want SECTION.KEY=VALUE"))?;
            let value = value.parse().unwrap_or_else(|never| match never {});
            figment = figment.merge(Assigned { source: "--set", key: key.trim().to_owned(), value });
        }
        Ok(figment)
    }

    /// The configuration of `role`, read and checked.
    ///
    /// # Errors
    /// What is wrong, with key, value and what would be right.
    pub(crate) fn load(&self, role: Role) -> anyhow::Result<Loaded> {
        let figment = self.figment(role)?;
        let mut settings: Settings = figment.extract().map_err(refused)?;
        let loopback = all_loopback(&figment)?;
        if role == Role::Run && loopback {
            // Beside the embedded log, so that `barrage token` finds them in the same directory.
            let directory = settings.bus.embedded.directory.parent().map(Path::to_owned).unwrap_or_default();
            make_up_secrets(&directory, &mut settings.cluster.secret, &mut settings.logic.token)?;
        }
        require(
            !settings.logic.trust_claims || (role == Role::Run && loopback),
            "logic.trust_claims",
            true,
            "false: only `barrage run` on loopback believes what a client claims to be",
        )?;
        settings.check(role)?;
        let incarnation = incarnation();
        let node = if settings.cluster.node.is_empty() {
            // Several of a role may run on one host.
            format!("{}-{}-{}", host_name(), role.name(), &incarnation[..4])
        } else {
            settings.cluster.node.clone()
        };
        require(is_id(&node), "cluster.node", &node, "1-64 of A-Z a-z 0-9 _ . -")?;
        let cluster = Cluster { node, incarnation, secret: settings.cluster.secret.clone() };
        let own_origins =
            role == Role::Run && figment.find_metadata("connector.origins").is_none_or(|from| from.name == DEFAULT);
        Ok(Loaded { settings, cluster, own_origins })
    }
}

/// Where a value comes from that nobody changed.
const DEFAULT: &str = "default";

struct Shipped;

impl Provider for Shipped {
    fn metadata(&self) -> Metadata {
        Metadata::named(DEFAULT)
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        Toml::string(SHIPPED).data()
    }
}

/// Addresses that others can reach the process at, by their keys.
const LISTENING: [&str; 5] = ["connector.listen", "connector.grpc", "logic.http", "logic.grpc", "admin.listen"];

/// Whether no key of [`LISTENING`] names another address than loopback.
fn all_loopback(figment: &Figment) -> anyhow::Result<bool> {
    for key in LISTENING {
        let addresses = match figment.find_value(key)? {
            Value::Array(_, all) => all,
            one => vec![one],
        };
        for address in addresses {
            let address = address.as_str().unwrap_or_default();
            if !address.is_empty() && !is_loopback(address) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn is_loopback(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
        || address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost")
}

/// The configuration, read and checked.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    pub(crate) cluster: Cluster,
    /// Nobody said which web origins may connect: those of our own page.
    pub(crate) own_origins: bool,
}

/// figment's error, in our words: key, value, what would be right.
fn refused(error: figment::Error) -> anyhow::Error {
    let lines: Vec<String> = error
        .into_iter()
        .map(|error| {
            let key = error.path.join(".");
            let from = error.metadata.as_ref().map_or_else(String::new, |metadata| format!(" ({})", origin(metadata)));
            format!("{key}{from}: {}", error.kind)
        })
        .collect();
    anyhow::anyhow!("the configuration is refused:\n  {}", lines.join("\n  "))
}

fn origin(metadata: &Metadata) -> String {
    match &metadata.source {
        Some(Source::File(path)) => path.display().to_string(),
        _ if metadata.name.contains("environment") => "environment".to_owned(),
        _ => metadata.name.to_string(),
    }
}

impl Settings {
    /// Where the operator's port listens.
    pub(crate) fn admin_listen(&self, role: Role) -> String {
        if self.admin.listen.is_empty() {
            format!("127.0.0.1:{}", role.admin_port())
        } else {
            self.admin.listen.clone()
        }
    }

    fn check(&self, role: Role) -> Result<(), Invalid> {
        let secret = self.cluster.secret.reveal();
        require(
            secret.len() >= SECRET_CHARACTERS_MIN,
            "cluster.secret",
            if secret.is_empty() { "\"\"" } else { "(hidden)" },
            "at least 32 characters, the same for every service: `openssl rand -hex 32` makes one",
        )?;
        if role != Role::Run {
            // A service alone would share them with nobody.
            require(
                self.bus.kind == bus::config::Kind::Kafka,
                "bus.kind",
                "embedded",
                "\"kafka\": only `barrage run` can use the embedded log",
            )?;
            require(
                self.routes.kind == routes::Kind::Redis,
                "routes.kind",
                "memory",
                "\"redis\": only `barrage run` can use memory",
            )?;
        }
        self.bus.check()?;
        self.routes.check()?;
        if role.is(Role::Connector) {
            self.connector.check()?;
        }
        if role.is(Role::Logic) {
            self.logic.check()?;
        }
        if role.is(Role::Job) {
            self.job.check()?;
        }
        Ok(())
    }
}

/// Keys whose values are not shown.
const HIDDEN: [&str; 4] = ["secret", "key", "hash", "password"];

/// The whole configuration, a line a key, each with where its value came from.
///
/// # Errors
/// The sources cannot be read.
pub(crate) fn show(figment: &Figment) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    let sections = figment.data()?.remove(&Profile::Default).unwrap_or_default();
    show_table(figment, "", &sections, &mut lines);
    Ok(lines.join("\n").trim_start().to_owned())
}

/// The keys of one table, then the tables within it, as TOML wants them.
fn show_table(figment: &Figment, path: &str, table: &Dict, lines: &mut Vec<String>) {
    if !path.is_empty() {
        lines.push(format!("\n[{path}]"));
    }
    let dotted = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for (key, value) in table {
        if value.as_dict().is_none() {
            let from = figment.find_metadata(&dotted(key)).map_or_else(String::new, origin);
            lines.push(format!("{:<56} # {from}", format!("{key} = {}", shown(key, value))));
        }
    }
    for (key, value) in table {
        if let Some(table) = value.as_dict() {
            show_table(figment, &dotted(key), table, lines);
        }
    }
}

fn shown(key: &str, value: &Value) -> String {
    match value {
        Value::String(_, text) if HIDDEN.contains(&key) && !text.is_empty() => "(hidden)".to_owned(),
        Value::String(_, text) => format!("{text:?}"),
        Value::Array(_, all) => {
            format!("[{}]", all.iter().map(|one| shown(key, one)).collect::<Vec<_>>().join(", "))
        }
        Value::Dict(_, all) => {
            let all: Vec<String> = all.iter().map(|(key, one)| format!("{key} = {}", shown(key, one))).collect();
            format!("{{ {} }}", all.join(", "))
        }
        scalar => serde_json::to_string(scalar).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "cluster.secret=0123456789abcdef0123456789abcdef";

    fn set(assignments: &[&str]) -> Sources {
        Sources { config: None, set: assignments.iter().map(ToString::to_string).collect() }
    }

    fn refused(role: Role, assignments: &[&str]) -> String {
        format!("{:#}", set(assignments).load(role).unwrap_err())
    }

    #[test]
    fn the_shipped_example_is_the_defaults_and_is_right() {
        let loaded = set(&[SECRET, "logic.token.jwks=no-key-is-made-up"]).load(Role::Run);
        let loaded = loaded.unwrap();
        assert_eq!(loaded.settings.logic.http.to_string(), "127.0.0.1:3111");
        assert_eq!(loaded.settings.admin_listen(Role::Job), "127.0.0.1:3197");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name_and_what_there_is() {
        let said = refused(Role::Run, &[SECRET, "connector.cors=3"]);
        assert!(said.contains("cors") && said.contains("cores") && said.contains("--set"), "{said}");
    }

    #[test]
    fn a_value_of_another_kind_is_refused_with_its_key() {
        let said = refused(Role::Run, &[SECRET, "bus.partitions=many"]);
        assert!(said.contains("bus.partitions") && said.contains("many"), "{said}");
    }

    #[test]
    fn an_impossible_value_is_refused_with_what_would_be_right() {
        let said = refused(Role::Run, &[SECRET, "bus.partitions=0"]);
        assert_eq!(said, "bus.partitions = 0: 1 to 4096, the same for ever");
    }

    #[test]
    fn another_address_than_loopback_wants_a_secret() {
        let said = refused(Role::Run, &[r#"connector.listen=["0.0.0.0:3101"]"#]);
        assert!(said.starts_with("cluster.secret = \"\""), "{said}");
    }

    #[test]
    fn claims_are_believed_by_run_on_loopback_only() {
        let trust = "logic.trust_claims=true";
        assert!(set(&[SECRET, trust, "logic.token.jwks=no-key-is-made-up"]).load(Role::Run).is_ok());
        let said = refused(Role::Run, &[SECRET, trust, r#"connector.listen=["0.0.0.0:3101"]"#]);
        assert!(said.starts_with("logic.trust_claims = true"), "{said}");
    }

    #[test]
    fn guests_send_on_loopback_only() {
        let guests = |assignments: &[&str]| {
            set(assignments).figment(Role::Run).unwrap().extract_inner::<String>("logic.guests").unwrap()
        };
        assert_eq!(guests(&[]), "send");
        assert_eq!(guests(&["logic.guests=watch"]), "watch");
        assert_eq!(guests(&[r#"connector.listen=["[::]:3101"]"#]), "refuse");
        assert_eq!(guests(&[r#"connector.listen=["[::1]:3101"]"#]), "send");
    }

    #[test]
    fn a_service_alone_refuses_a_store_that_it_would_share_with_nobody() {
        assert!(refused(Role::Job, &[SECRET]).starts_with("bus.kind = embedded"));
        assert!(refused(Role::Logic, &[SECRET, "bus.kind=kafka"]).starts_with("routes.kind = memory"));
    }

    #[test]
    fn what_is_shown_says_where_it_came_from_and_hides_secrets() {
        let figment = set(&[SECRET, "log.level=debug"]).figment(Role::Run).unwrap();
        let shown = show(&figment).unwrap();
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
        assert!(shown.contains("[bus.embedded]"), "{shown}");
        let from = |key: &str| {
            let line = shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {shown}"));
            line.split('#').nth(1).unwrap_or_default().trim().to_owned()
        };
        assert_eq!(from("level = "), "--set");
        assert_eq!(from("guests = "), "`barrage run` on loopback");
        assert_eq!(from("partitions = "), "default");
    }
}
