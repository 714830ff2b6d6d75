//! Faults that are planted to show that the simulation sees what it is meant to see. None in a build that serves.

/// Faults that the simulation must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A skipped reader is not told.
    UncountedDrop,
    /// What the owner capped is counted in a gap, and told for no reason.
    UntoldReason,
    /// Of a skipped reader, what it was to be told for other reasons is told as its own slowness.
    AllCalledSlow,
    /// A closed session stays in its room.
    LeakedSession,
    /// Two messages of one batch change places.
    Reordering,
    /// A reader that the tail has passed goes on one byte beside the frame.
    WrapOffByOne,
    /// A half-sent frame's remainder is not copied out.
    LostRemainder,
    /// Who comes from a connector that was further is sent again what it has.
    SentAgain,
    /// Who has some of a batch is sent all of it.
    WholeBatch,
    /// Who is in two rooms is sent to twice by one call.
    TwiceInABatch,
}
