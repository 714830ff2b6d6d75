//! The state machines of the control thread under random schedules. A seed reproduces a run; a failure names it.

use std::collections::BTreeSet;

mod gate;
mod holder;

/// xorshift64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Runs `seeds` runs. Together they must have `seen` all of this, or the schedules try too little.
fn run(seeds: u64, run: impl Fn(Random) -> BTreeSet<&'static str> + std::panic::RefUnwindSafe, all: &[&'static str]) {
    let mut seen = BTreeSet::new();
    for seed in 1..=seeds {
        match std::panic::catch_unwind(|| run(Random::new(seed))) {
            Ok(what) => seen.extend(what),
            Err(panic) => {
                eprintln!("seed {seed} fails");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert_eq!(seen, all.iter().copied().collect(), "the schedules do not try everything");
}
