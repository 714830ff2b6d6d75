//! A real Kafka for the tests: `scripts/kafka.sh`, ended with this process however that ends.

use bus::Config;
use bus::config::Kind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/kafka.sh");

/// A cluster.
pub struct Cluster {
    dir: PathBuf,
    brokers: Vec<String>,
}

/// The one that the tests of this binary share; `None` where it cannot be had, which is said, and fails under CI.
pub fn shared() -> Option<&'static Cluster> {
    static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
    SHARED.get_or_init(|| start("shared", 1)).as_ref()
}

/// One of a test's own, of so many brokers.
pub fn start(name: &str, brokers: u32) -> Option<Cluster> {
    let dir = std::env::temp_dir().join(format!("barrage-kafka-{name}-{}", std::process::id()));
    match up(&dir, brokers) {
        Ok(brokers) => Some(Cluster { dir, brokers }),
        Err(why) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("no Kafka: {why}"),
        Err(why) => {
            println!("skipped: no Kafka: {why}");
            None
        }
    }
}

/// The brokers' `host:port`.
fn up(dir: &Path, brokers: u32) -> Result<Vec<String>, String> {
    let output = Command::new(SCRIPT)
        .arg("up")
        .arg(dir)
        .arg(brokers.to_string())
        .env("KAFKA_WITH", std::process::id().to_string())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        Ok(said.trim().split(',').map(str::to_owned).collect())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

impl Cluster {
    /// `kill -9` of a broker, from 1.
    pub fn kill(&self, broker: u32) {
        self.order("kill", broker);
    }

    /// Stops a broker where it is (SIGSTOP).
    pub fn stop(&self, broker: u32) {
        self.order("stop", broker);
    }

    /// Lets a stopped broker go on (SIGCONT).
    pub fn go(&self, broker: u32) {
        self.order("go", broker);
    }

    fn order(&self, order: &str, broker: u32) {
        let mut script = Command::new(SCRIPT);
        let status = script.arg(order).arg(&self.dir).arg(broker.to_string()).status().expect("the script runs");
        assert!(status.success(), "{order} of broker {broker}");
    }

    /// Starts what was killed, and does not wait for it.
    pub fn restart_without_waiting(&self) {
        let started = Command::new(SCRIPT).arg("up").arg(&self.dir).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut script = started.expect("the script runs");
        std::thread::spawn(move || script.wait());
    }

    /// Starts what was killed, and waits until it serves.
    pub fn restart(&self) {
        up(&self.dir, self.brokers.len() as u32).expect("the broker starts again");
    }

    /// A configuration with topics of its own on this cluster.
    pub fn config(&self) -> Config {
        let mut config = super::config(Path::new("unused"));
        config.kind = Kind::Kafka;
        config.kafka.brokers.clone_from(&self.brokers);
        config.kafka.topic_prefix = format!("test{:08x}.", rand::random::<u32>());
        // As shipped where there are brokers enough.
        if self.brokers.len() < 3 {
            (config.kafka.development, config.kafka.replication, config.kafka.min_in_sync) = (true, 1, 1);
        }
        config.check().expect("right");
        config
    }
}
