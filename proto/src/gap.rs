//! Arithmetic on the reasons for a gap ([`GapReasons`]): they are a count of messages, parted by why these do not come.
//!
//! Invariant: the sum of the reasons is the count of messages. Sums stay at the largest number instead of wrapping.

use std::ops::{AddAssign, Sub};

use crate::client::GapReasons;

impl GapReasons {
    /// So many messages, of which nobody knows why they do not come.
    #[must_use]
    pub fn unknown(count: u64) -> Self {
        Self { unknown: count, ..Self::default() }
    }

    /// So many messages, for the reasons that a peer told. What these leave of `count` is unknown, as is everything where
    /// they are absent or are more than `count`.
    #[must_use]
    pub fn of(count: u64, reasons: Option<Self>) -> Self {
        let Some(reasons) = reasons else { return Self::unknown(count) };
        let sum = reasons.counts().into_iter().try_fold(0, u64::checked_add);
        match sum.and_then(|sum| count.checked_sub(sum)) {
            Some(left) => Self { unknown: reasons.unknown + left, ..reasons },
            None => Self::unknown(count),
        }
    }

    /// The messages, for whichever reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts().into_iter().fold(0, u64::saturating_add)
    }

    /// All but `count` of the messages, where nobody knows which ones these were: as many of each reason as there are left
    /// at least, and the others for an unknown one.
    #[must_use]
    pub fn without(&self, count: u64) -> Self {
        let sure = self
            .each(&Self { slow: count, shed: count, capped: count, aged: count, unknown: count }, u64::saturating_sub);
        Self::of(self.total().saturating_sub(count), Some(sure))
    }

    fn counts(&self) -> [u64; 5] {
        let Self { slow, shed, capped, aged, unknown } = *self;
        [slow, shed, capped, aged, unknown]
    }

    fn each(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            slow: of(self.slow, other.slow),
            shed: of(self.shed, other.shed),
            capped: of(self.capped, other.capped),
            aged: of(self.aged, other.aged),
            unknown: of(self.unknown, other.unknown),
        }
    }
}

impl AddAssign for GapReasons {
    fn add_assign(&mut self, more: Self) {
        *self = self.each(&more, u64::saturating_add);
    }
}

/// Of two cumulative counts, what lies between them.
impl Sub for GapReasons {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        self.each(&before, u64::saturating_sub)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reasons(most: u64) -> impl Strategy<Value = GapReasons> {
        prop::array::uniform5(0..=most).prop_map(|[slow, shed, capped, aged, unknown]| GapReasons {
            slow,
            shed,
            capped,
            aged,
            unknown,
        })
    }

    proptest! {
        #[test]
        fn the_reasons_of_a_count_are_the_count(
            count in prop_oneof![0u64..50, Just(u64::MAX)],
            told in prop::option::of(prop_oneof![reasons(10), reasons(u64::MAX)]),
        ) {
            let of = GapReasons::of(count, told);
            prop_assert_eq!(of.total(), count);
            if let Some(told) = told.filter(|told| told.counts().iter().map(|it| u128::from(*it)).sum::<u128>() <= count.into()) {
                prop_assert_eq!(GapReasons { unknown: told.unknown, ..of }, told, "what was told stays");
            }
        }

        #[test]
        fn without_some_no_reason_is_told_more_often_than_it_can_be(all in reasons(10), count in 0u64..60) {
            let left = all.without(count);
            prop_assert_eq!(left.total(), all.total().saturating_sub(count));
            let named = |it: &GapReasons| [it.slow, it.shed, it.capped, it.aged];
            for (left, all) in named(&left).into_iter().zip(named(&all)) {
                prop_assert_eq!(left, all.saturating_sub(count), "so many of them are left at least");
            }
        }

        #[test]
        fn what_is_added_is_what_lies_between(before in reasons(1 << 40), more in reasons(1 << 40)) {
            let mut sum = before;
            sum += more;
            prop_assert_eq!(sum - before, more);
            prop_assert_eq!(sum.total(), before.total() + more.total());
        }
    }
}
