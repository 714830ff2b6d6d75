//! What goes out on a job's stream, in order, and taken only as fast as the stream does. One acknowledgement a partition
//! and one hold a channel and core can wait at a time; as channels that come and go would add to that, a stream whose job
//! takes nothing for [`STALLED_LOOKS`] looks is ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures::Stream;
use futures::task::AtomicWaker;
use proto::cluster::{Ack, Acks, FromHolder, from_holder};
use rustc_hash::FxHashMap;
use tonic::Status;

/// Looks in a row, one a second, at which something waits and nothing was taken since the last one: longer than a job is
/// ever busy, and short enough that what gathers is small.
pub(super) const STALLED_LOOKS: u32 = 10;

/// See the module's opening.
#[derive(Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    reader: AtomicWaker,
}

#[derive(Default)]
struct Inner {
    frames: VecDeque<from_holder::Frame>,
    /// Of each partition the last one, and the order in which they are due.
    acks: FxHashMap<(i32, u32), Ack>,
    due: VecDeque<(i32, u32)>,
    end: Option<Option<Status>>,
    /// Since the last look.
    taken: u64,
    stalled: u32,
}

impl Outbox {
    /// After everything that was sent before.
    pub(super) fn send(&self, frame: from_holder::Frame) {
        self.lock().frames.push_back(frame);
        self.reader.wake();
    }

    /// With the next frame, or after [`Outbox::acknowledge`]; a later one of the partition stands for this.
    pub(super) fn ack(&self, ack: Ack) {
        let mut inner = self.lock();
        let key = (ack.topic, ack.partition);
        if inner.acks.insert(key, ack).is_none() {
            inner.due.push_back(key);
        }
    }

    /// Has the acknowledgements that are due written.
    pub(super) fn acknowledge(&self) {
        if !self.lock().due.is_empty() {
            self.reader.wake();
        }
    }

    /// Ends the stream, at once; with an error if there is one to tell.
    pub(super) fn end(&self, status: Option<Status>) {
        self.lock().end.get_or_insert(status);
        self.reader.wake();
    }

    /// A look, once a second: whether the job has stopped taking anything.
    pub(super) fn is_stalled(&self) -> bool {
        let mut inner = self.lock();
        let taken = std::mem::take(&mut inner.taken);
        inner.stalled = if taken == 0 && !inner.frames.is_empty() { inner.stalled + 1 } else { 0 };
        inner.stalled >= STALLED_LOOKS
    }

    /// The stream.
    pub(super) fn stream(self: Arc<Self>) -> impl Stream<Item = Result<FromHolder, Status>> + Send {
        let mut ended = false;
        futures::stream::poll_fn(move |context| {
            if ended {
                return Poll::Ready(None);
            }
            self.reader.register(context.waker());
            let mut inner = self.lock();
            if let Some(end) = &mut inner.end {
                ended = true;
                return Poll::Ready(end.take().map(Err));
            }
            match inner.next() {
                Some(frame) => Poll::Ready(Some(Ok(FromHolder { frame: Some(frame) }))),
                None => Poll::Pending,
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn next(&mut self) -> Option<from_holder::Frame> {
        if let Some(frame) = self.frames.pop_front() {
            self.taken += 1;
            return Some(frame);
        }
        let acks: Vec<Ack> = self.due.drain(..).filter_map(|partition| self.acks.remove(&partition)).collect();
        (!acks.is_empty()).then_some(from_holder::Frame::Acks(Acks { acks }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Context;

    use futures::task::ArcWake;
    use futures::{FutureExt as _, StreamExt as _};
    use proto::cluster::HoldsDone;

    use super::*;

    struct Woken(Arc<AtomicBool>);

    impl ArcWake for Woken {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn frames_keep_their_order_and_only_the_last_acknowledgement_goes_out() {
        let outbox = Arc::new(Outbox::default());
        let mut stream = std::pin::pin!(outbox.clone().stream());
        assert!(stream.next().now_or_never().is_none());
        for seq in 1..=3 {
            outbox.ack(Ack { topic: 1, partition: 7, epoch: 1, seq });
            outbox.ack(Ack { topic: 1, partition: 8, epoch: 1, seq: 10 * seq });
            outbox.ack(Ack { topic: 2, partition: 8, epoch: 1, seq: 100 * seq });
            outbox.send(from_holder::Frame::HoldsDone(HoldsDone { topic: 1, partition: seq as u32, epoch: 1 }));
        }
        let mut said = Vec::new();
        while let Some(Some(Ok(FromHolder { frame: Some(frame) }))) = stream.next().now_or_never() {
            said.push(match frame {
                from_holder::Frame::HoldsDone(done) => format!("done {}", done.partition),
                from_holder::Frame::Acks(Acks { acks }) => {
                    format!("acks {:?}", acks.iter().map(|ack| ack.seq).collect::<Vec<_>>())
                }
                other => format!("{other:?}"),
            });
        }
        assert_eq!(said, ["done 1", "done 2", "done 3", "acks [3, 30, 300]"]);
        let woken = Arc::new(AtomicBool::new(false));
        let waker = futures::task::waker(Arc::new(Woken(woken.clone())));
        assert!(stream.as_mut().poll_next(&mut Context::from_waker(&waker)).is_pending());
        outbox.acknowledge();
        outbox.ack(Ack { topic: 1, partition: 7, epoch: 1, seq: 4 });
        assert!(!woken.load(Ordering::Relaxed), "nothing was due, and then it has time");
        outbox.acknowledge();
        assert!(woken.load(Ordering::Relaxed) && stream.next().now_or_never().is_some());
        for _ in 0..2 * STALLED_LOOKS {
            assert!(!outbox.is_stalled(), "nothing waits");
        }
        outbox.send(from_holder::Frame::HoldsDone(HoldsDone { topic: 1, partition: 4, epoch: 1 }));
        let looks = (0..2 * STALLED_LOOKS).take_while(|_| !outbox.is_stalled()).count();
        assert_eq!(looks as u32, STALLED_LOOKS - 1);
        outbox.end(Some(Status::aborted("so")));
        outbox.end(None);
        assert!(matches!(stream.next().now_or_never(), Some(Some(Err(_)))));
        assert!(matches!(stream.next().now_or_never(), Some(None)));
    }
}
