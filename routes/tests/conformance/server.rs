//! Redis servers for tests, started by `scripts/redis.sh`, ended when the test is done with them.

use std::path::Path;
use std::process::Command;

use crate::PATIENCE;

/// `redis.sh` ends with this where Redis is not installed.
const NOT_INSTALLED: i32 = 3;

/// One server, or three that are a cluster, or those with a replica of each.
pub(crate) struct Servers {
    dir: tempfile::TempDir,
    /// Where they answer.
    pub(crate) urls: Vec<String>,
}

impl Servers {
    /// `None`, and said so, where Redis is not installed; with CI=true that is a failure.
    pub(crate) fn up(options: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let output = script("up", dir.path(), options);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(NOT_INSTALLED) && std::env::var("CI").as_deref() != Ok("true") {
            println!("SKIPPED: {said}");
            return None;
        }
        assert!(output.status.success(), "scripts/redis.sh up: {said}");
        let urls = String::from_utf8(output.stdout).expect("URLs are UTF-8");
        Some(Self { dir, urls: urls.trim().split(',').map(ToOwned::to_owned).collect() })
    }

    /// Ends them.
    pub(crate) fn down(&self) {
        assert!(script("down", self.dir.path(), &[]).status.success());
    }

    /// Starts them again, in the same place.
    pub(crate) fn again(&self, options: &[&str]) {
        let output = script("up", self.dir.path(), options);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Kills the server in this place of [`Self::urls`], as a machine that fails.
    pub(crate) fn kill(&self, place: usize) {
        let pid = std::fs::read_to_string(self.dir.path().join(format!("{}/pid", place + 1))).expect("it runs");
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().expect("kill can be run").success());
    }

    /// What each server's keys are, with the milliseconds that each has left (-1: it never expires).
    pub(crate) async fn keys(&self) -> Vec<(String, i64)> {
        let mut all = Vec::new();
        for mut connection in self.connections().await {
            let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
            for key in keys {
                let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.unwrap();
                // -2: gone in between.
                if left != -2 {
                    all.push((key, left));
                }
            }
        }
        all
    }

    /// A connection to each.
    pub(crate) async fn connections(&self) -> Vec<redis::aio::MultiplexedConnection> {
        let mut all = Vec::new();
        for url in &self.urls {
            let client = redis::Client::open(url.as_str()).unwrap();
            // The library's own half a second is too short on a loaded machine.
            let patient = redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE));
            all.push(client.get_multiplexed_async_connection_with_config(&patient).await.unwrap());
        }
        all
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        script("down", self.dir.path(), &[]);
    }
}

fn script(command: &str, dir: &Path, options: &[&str]) -> std::process::Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/redis.sh");
    // However this process ends, the servers end with it.
    let with = std::process::id().to_string();
    Command::new(script)
        .arg(command)
        .arg(dir)
        .args(options)
        .env("REDIS_WITH", with)
        .output()
        .expect("scripts/redis.sh can be run")
}
