//! A real Kafka for the tests: `scripts/kafka.sh`, ended with this process however that ends.

use bus::Config;
use bus::config::Kind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka.sh");

/// A cluster of one broker.
pub struct Cluster {
    /// Where it is kept.
    pub dir: PathBuf,
    /// `host:port`.
    pub broker: String,
}

/// The one that the tests of this binary share; `None` where it cannot be had, which is said, and fails under CI.
pub fn shared() -> Option<&'static Cluster> {
    static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
    SHARED.get_or_init(|| start("shared")).as_ref()
}

/// One of a test's own.
pub fn start(name: &str) -> Option<Cluster> {
    let dir = std::env::temp_dir().join(format!("barrage-kafka-{name}-{}", std::process::id()));
    match up(&dir) {
        Ok(broker) => Some(Cluster { dir, broker }),
        Err(why) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("no Kafka: {why}"),
        Err(why) => {
            println!("skipped: no Kafka: {why}");
            None
        }
    }
}

fn up(dir: &Path) -> Result<String, String> {
    let output = Command::new(SCRIPT)
        .arg("up")
        .arg(dir)
        .env("KAFKA_WITH", std::process::id().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(said) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

impl Cluster {
    /// `kill -9` of the broker.
    pub fn kill(&self) {
        let status = Command::new(SCRIPT).arg("kill").arg(&self.dir).arg("1").status().expect("the script runs");
        assert!(status.success());
    }

    /// Starts it again.
    pub fn restart(&self) {
        up(&self.dir).expect("the broker starts again");
    }

    /// A configuration with topics of its own on this cluster.
    pub fn config(&self) -> Config {
        let mut config = super::config(Path::new("unused"));
        config.kind = Kind::Kafka;
        config.kafka.brokers = vec![self.broker.clone()];
        config.kafka.topic_prefix = format!("test{:08x}.", rand::random::<u32>());
        config.kafka.development = true;
        config.kafka.replication = 1;
        config.kafka.min_in_sync = 1;
        config.check().expect("right");
        config
    }
}
