//! Jobs that have fallen silent, and what a survivor takes over from them before the bus's group knows.
//!
//! A job renews its lease several times a second, with a number that grows ([`routes::JobLease::beat`]) and the partitions
//! that it has. Whoever sees the number stand still for [`SILENCE_MAX`] takes its share of those partitions over: claims
//! decide who owns one, so that a mistake costs a takeover and nothing more. What the group decides later stands.
//!
//! Invariants:
//! - the survivors agree on who takes what without a word, as far as they see the same leases: those that have
//!   partitions, before those that wait for the group to give them some;
//! - a job that was suspected is suspected again only after its number has grown: one that lives, and has lost its way to
//!   Routes alone, loses each partition once;
//! - time in which this job itself did not look does not count.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use routes::{Lease, Role};

/// How often a job looks at the leases, and renews its own. Redis does thousands of these a second.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A number that stands still for this long is a job that is gone, or stands still: three renewals. A pause of this
/// length on a busy machine costs a takeover, which is why it is not less.
const SILENCE_MAX: Duration = Duration::from_millis(800);
/// After a longer time between two looks, all that was seen before is too old to tell anything.
const BLIND_MAX: Duration = Duration::from_millis(600);
const _: () =
    assert!(LOOK_EVERY.as_millis() * 2 < BLIND_MAX.as_millis() && LOOK_EVERY.as_millis() * 3 < SILENCE_MAX.as_millis());

/// What is known of the other jobs.
pub(crate) struct Silence {
    /// This job's incarnation.
    own: String,
    others: HashMap<String, Other>,
    looked: Option<Instant>,
}

struct Other {
    beat: u64,
    /// When it was seen to have grown.
    since: Instant,
    /// What it had was shared out.
    shared_out: bool,
}

impl Silence {
    pub(crate) fn new(own: &str) -> Self {
        Self { own: own.to_owned(), others: HashMap::new(), looked: None }
    }

    /// The leases as they are `now`: the partitions, by topic, that this job is to take over.
    pub(crate) fn look(&mut self, now: Instant, leases: &[Lease]) -> BTreeMap<String, Vec<u32>> {
        let blind = self.looked.is_none_or(|looked| now - looked > BLIND_MAX);
        self.looked = Some(now);
        let jobs: BTreeMap<&str, &routes::JobLease> = leases
            .iter()
            .filter(|lease| lease.role == Role::Job && lease.incarnation != self.own)
            .filter_map(|lease| Some((lease.incarnation.as_str(), lease.job.as_ref()?)))
            .collect();
        self.others.retain(|incarnation, _| jobs.contains_key(incarnation.as_str()));
        let (mut living, mut silent) = (vec![self.own.as_str()], Vec::new());
        for (&incarnation, &job) in &jobs {
            let fresh = || Other { beat: job.beat, since: now, shared_out: false };
            let other = self.others.entry(incarnation.to_owned()).or_insert_with(fresh);
            if other.beat != job.beat {
                *other = fresh();
            } else if blind && !other.shared_out {
                other.since = now;
            }
            match now - other.since < SILENCE_MAX {
                true => living.push(incarnation),
                false if !other.shared_out => silent.push((incarnation, job)),
                false => {}
            }
        }
        let working = |incarnation: &&str| {
            let lease = leases.iter().find(|lease| lease.incarnation == **incarnation && lease.role == Role::Job);
            let job = lease.and_then(|lease| lease.job.as_ref());
            job.is_some_and(|job| job.owns.values().any(|partitions| !partitions.is_empty()))
        };
        if living.iter().any(working) {
            living.retain(working);
        }
        living.sort_unstable();
        let mut taken: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (incarnation, job) in silent {
            tracing::warn!(job = incarnation, "a job has fallen silent: the others take over what it has");
            self.others.entry(incarnation.to_owned()).and_modify(|other| other.shared_out = true);
            for (topic, partitions) in &job.owns {
                let ours = |partition: &&u32| living[**partition as usize % living.len()] == self.own;
                taken.entry(topic.clone()).or_default().extend(partitions.iter().filter(ours));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(incarnation: &str, beat: u64, partitions: &[u32]) -> Lease {
        let owns = BTreeMap::from([("rooms".to_owned(), partitions.to_vec())]);
        Lease {
            node: incarnation.into(),
            incarnation: incarnation.into(),
            role: Role::Job,
            grpc: String::new(),
            clients: Vec::new(),
            sessions: 0,
            addresses: 0,
            open: true,
            job: Some(routes::JobLease { beat, owns }),
        }
    }

    /// Looks on from look `from` to look `to`, the other jobs being as `leases` says of each look.
    fn looks(
        silence: &mut Silence,
        begun: Instant,
        looks: std::ops::Range<u32>,
        leases: impl Fn(u64) -> Vec<Lease>,
    ) -> Vec<(u32, Vec<u32>)> {
        let mut taken = Vec::new();
        for look in looks {
            let found = silence.look(begun + LOOK_EVERY * look, &leases(look.into()));
            taken.extend(found.into_values().map(|partitions| (look, partitions)));
        }
        taken
    }

    #[test]
    fn what_a_silent_job_had_is_shared_out_once() {
        let begun = Instant::now();
        let (mut a, mut b) = (Silence::new("a"), Silence::new("b"));
        // c stands still from look 10 on.
        let leases =
            |look: u64| vec![lease("a", look, &[0]), lease("b", look, &[1]), lease("c", look.min(10), &[2, 3, 4, 5])];
        let (by_a, by_b) = (looks(&mut a, begun, 0..60, leases), looks(&mut b, begun, 0..60, leases));
        assert_eq!((by_a.len(), by_b.len()), (1, 1), "{by_a:?} {by_b:?}");
        assert_eq!((&by_a[0].1[..], &by_b[0].1[..]), (&[2, 4][..], &[3, 5][..]));
        assert!(LOOK_EVERY * (by_a[0].0 - 10) < Duration::from_millis(1_100), "{by_a:?}");
        // It wakes up, and falls silent again.
        let leases = |_| vec![lease("a", 60, &[0]), lease("b", 60, &[1]), lease("c", 11, &[2])];
        assert_eq!(looks(&mut a, begun, 60..61, leases), []);
        let leases = |look| vec![lease("a", look, &[0]), lease("b", look, &[1]), lease("c", 11, &[2])];
        let again = looks(&mut a, begun, 61..80, leases);
        assert_eq!(again.iter().map(|(_, partitions)| &partitions[..]).collect::<Vec<_>>(), [&[2][..]]);
    }

    #[test]
    fn a_job_that_has_nothing_yet_takes_over_only_where_no_other_can() {
        let begun = Instant::now();
        let (mut a, mut fresh) = (Silence::new("a"), Silence::new("fresh"));
        let leases = |look| vec![lease("a", look, &[0]), lease("fresh", look, &[]), lease("c", 1, &[2, 3])];
        assert_eq!(looks(&mut a, begun, 0..20, leases)[0].1, [2, 3]);
        let nothing: &[u32] = &[];
        assert_eq!(looks(&mut fresh, begun, 0..20, leases)[0].1, nothing);
        let mut standby = Silence::new("fresh");
        let leases = |look| vec![lease("fresh", look, &[]), lease("c", 1, &[2, 3])];
        assert_eq!(looks(&mut standby, begun, 0..20, leases)[0].1, [2, 3]);
    }

    #[test]
    fn a_job_that_did_not_look_itself_suspects_nobody() {
        let begun = Instant::now();
        let mut a = Silence::new("a");
        // It stands still, and finds on waking what Routes had of the other before.
        let still = |_| vec![lease("b", 7, &[1])];
        assert_eq!(looks(&mut a, begun, 0..2, still), []);
        assert_eq!(looks(&mut a, begun, 100..102, still), []);
        assert_eq!(looks(&mut a, begun, 200..210, still).len(), 1);
    }

    #[test]
    fn a_job_that_gave_its_lease_back_is_not_silent() {
        let begun = Instant::now();
        let mut a = Silence::new("a");
        let leases = |look| if look < 3 { vec![lease("b", look, &[1])] } else { Vec::new() };
        assert_eq!(looks(&mut a, begun, 0..40, leases), []);
    }
}
