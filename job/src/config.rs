//! The `[job]` section of the configuration.

use proto::config::{Invalid, require};
use serde::Deserialize;

/// `queue_bytes_max` at least, bytes: the largest answer to a hold must fit into its half,
/// with room to spare.
pub(crate) const QUEUE_BYTES_MIN: usize = 8 << 20;

/// `push_keep_s` at most: well under the age at which a push is dropped in any case.
pub(crate) const PUSH_KEEP_S_MAX: u32 = 20;

/// What an operator can set of job. The shipped `config/barrage.toml` is the defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Room messages older than this when they would be delivered first are dropped and counted, seconds.
    pub age_s_max: u32,
    /// Messages a second that a room delivers; what is over it is dropped, counted and told. 0: no cap.
    pub room_messages_per_s_max: u32,
    /// Memory for rooms and their recent messages beyond the last few of each, bytes: what lets a connector that was
    /// away for some seconds miss nothing. Over it rooms that nobody holds are forgotten when their messages are older
    /// than `age_s_max`.
    pub recent_bytes_max: usize,
    /// Message IDs that are remembered for dropping repeated ones (about 100 bytes each); over it the oldest are
    /// forgotten early, and counted.
    pub repeat_ids_max: usize,
    /// How long a push is kept whose names cannot be looked up, because Routes are away or not complete, seconds from when
    /// the bus took it.
    pub push_keep_s: u32,
    /// What may wait for one connector, sent and not acknowledged included, bytes; over it a partition's part of it is
    /// dropped and the connector asks again.
    pub queue_bytes_max: usize,
}

impl Config {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        require((1..=3600).contains(&self.age_s_max), "job.age_s_max", self.age_s_max, "1 to 3600 seconds")?;
        require(
            self.recent_bytes_max >= 1 << 20,
            "job.recent_bytes_max",
            self.recent_bytes_max,
            "at least 1048576 bytes",
        )?;
        require(
            (1..=PUSH_KEEP_S_MAX).contains(&self.push_keep_s),
            "job.push_keep_s",
            self.push_keep_s,
            "1 to 20 seconds",
        )?;
        require(self.repeat_ids_max >= 1000, "job.repeat_ids_max", self.repeat_ids_max, "at least 1000 IDs")?;
        require(
            self.queue_bytes_max >= QUEUE_BYTES_MIN,
            "job.queue_bytes_max",
            self.queue_bytes_max,
            "at least 8388608 bytes: a few of the largest frames",
        )
    }
}

#[cfg(test)]
impl Config {
    /// The shipped section.
    pub(crate) fn shipped() -> Self {
        #[derive(Deserialize)]
        struct File {
            job: Config,
        }
        toml::from_str::<File>(include_str!("../../config/barrage.toml")).expect("the shipped file is read").job
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_section_is_accepted_and_a_bad_value_is_named() {
        assert_eq!(Config::shipped().check(), Ok(()));
        let bad = Config { age_s_max: 0, ..Config::shipped() };
        assert_eq!(bad.check().unwrap_err().key, "job.age_s_max");
        let bad = Config { push_keep_s: PUSH_KEEP_S_MAX + 1, ..Config::shipped() };
        assert_eq!(bad.check().unwrap_err().key, "job.push_keep_s");
    }
}
