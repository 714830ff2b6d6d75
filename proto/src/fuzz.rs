//! What the fuzz bodies (`*_fuzz.rs`, each beside its codec) are made of. A body serves cargo-fuzz, where libFuzzer
//! chooses the bytes, and a smoke test, where [`smoke`] does; so it holds no chance of its own.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Decisions drawn from a fuzzer's bytes, zeros when they are used up: a change of one byte changes one decision.
#[derive(Debug)]
pub struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    /// Draws from `data`.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether all is drawn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of 0 to 255.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// True in one of `of`.
    pub fn once_in(&mut self, of: u8) -> bool {
        self.byte() % of == of - 1
    }

    /// Of 0 to 65535.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// As many as are left of `count`.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        self.0.split_off(..count.min(self.0.len())).unwrap_or_default()
    }

    /// All that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Cuts `bytes` into pieces of 1 to 256 bytes, as `sizes` say in turn; without sizes, one piece.
pub fn pieces<'a>(mut bytes: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut turn = 0;
    std::iter::from_fn(move || {
        let size = sizes.get(turn % sizes.len().max(1)).map_or(bytes.len(), |size| usize::from(*size) + 1);
        turn += 1;
        bytes.split_off(..size.min(bytes.len())).filter(|piece| !piece.is_empty())
    })
}

/// Whether the environment asks for this bug; see `planted!`.
#[must_use]
pub fn planted(bug: &str) -> bool {
    static PLANTED: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("BARRAGE_PLANTED").ok());
    PLANTED.as_deref() == Some(bug)
}

/// Runs a body on the same 2,000 inputs every time.
///
/// # Panics
/// With the smallest input that it finds on which the body panics.
pub fn smoke(body: fn(&[u8])) {
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let inputs = prop::collection::vec(any::<u8>(), 0..600);
    let result = runner.run(&inputs, |input| {
        body(&input);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
