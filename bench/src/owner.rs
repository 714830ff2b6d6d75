//! Straight into a connector, as a job does it: owns the rooms' partitions on the connector's `Delivery` service,
//! answers its holds and delivers messages at their intended times, numbered densely and acknowledged.
//!
//! ```text
//!   connect ─▶ Own{partition, epoch} ─▶ Hold/Held for each room that is entered ─▶ start ─▶ Deliver, Deliver, …  ◀─ Ack
//! ```
//!
//! What is due at the same look (once a millisecond) goes in one frame for each partition, as a job's does; what a
//! connector has not acknowledged is bounded as a job's queue is. Its own jobs, if it has any, own these partitions no
//! more until it is started anew: the epoch is above any that a log comes to.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use prost::Message as _;
use proto::client::{Lane, Message, Sender, message};
use proto::cluster::{self, FromHolder, FromOwner, Item, Own, Topic, from_holder, from_owner};
use proto::config::Secret;
use rpc::cluster::delivery_client::DeliveryClient;
use rpc::secret::SecretInterceptor;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;

use crate::chat;
use crate::clock::now_ns;
use crate::note::Note;
use crate::publish::Published;
use crate::schedule::Schedule;
use crate::tally::{record, set};

/// Above what any log's claim has for an offset.
const EPOCH: u64 = 1 << 60;
/// Where offsets begin: of one length on the wire (four bytes of varint) for 260 million messages.
const FIRST_OFFSET: u64 = 1 << 21;
/// Largest batch of messages in one frame, bytes: as job's.
const DELIVER_BYTES_MAX: usize = 256 * 1024;
/// Sent and not acknowledged, bytes: as `job.queue_bytes_max`. Over it messages are not sent, and counted so.
const FLYING_BYTES_MAX: usize = 16 << 20;
/// Frames between here and the stream; over it the next ones wait, and gather.
const FRAMES_MAX: usize = 64;
/// How long the connector may take to answer to its owner, and to acknowledge the last messages.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often what is due is looked for.
const LOOK: Duration = Duration::from_millis(1);

/// Whom to deliver to, and what.
#[derive(Clone)]
pub(crate) struct DeliveryPlan {
    pub(crate) schedule: Arc<Schedule>,
    /// `host:port` of the `Delivery` service.
    pub(crate) grpc: String,
    pub(crate) secret: String,
    /// As the connector's other owners count them.
    pub(crate) partitions: u32,
    /// Of a payload; `None`: messages are chat, as long as what is said, and of many senders.
    pub(crate) bytes: Option<usize>,
}

/// The message that viewers get.
fn message(schedule: &Schedule, room: u32, offset: u64, note: Note, bytes: Option<usize>) -> Message {
    let sender = match bytes {
        Some(_) => Sender { uid: "bench".into(), name: "bench".into() },
        None => {
            let (uid, name) = chat::sender(note.number.into());
            Sender { uid: uid.to_string(), name }
        }
    };
    Message {
        channel: format!("room:{}", schedule.room_name(room)),
        id: id(note),
        offset,
        time_ms: time_ms(),
        sender: Some(sender),
        r#type: "text".into(),
        payload: Some(message::Payload::Text(note.payload(bytes))),
        ..Message::default()
    }
}

/// 22 characters, as logic's, and as hard to compress.
fn id(note: Note) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    // Odd factors (Steele and Vigna, 2021), and shifts that can be undone: no two messages have the same.
    let seed = u64::from(note.run) << 32 | u64::from(note.number);
    let halves = [0xd134_2543_de82_ef95_u64, 0xaf25_1af3_b0f0_25b5].map(|factor| {
        let mixed = seed.wrapping_mul(factor);
        (mixed ^ mixed >> 32).wrapping_mul(factor)
    });
    let digits = halves.into_iter().flat_map(|half| (0..11).map(move |at| half >> (at * 6) & 63));
    digits.map(|digit| char::from(LETTERS[digit as usize])).collect()
}

fn time_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}

/// Bytes of an encoded message with a payload of so many: what stands on the wire is that and its frame.
pub(crate) fn message_bytes(schedule: &Schedule, payload_bytes: usize) -> usize {
    let note = Note { run: schedule.run, number: 0, intended_ns: 0 };
    message(schedule, 0, FIRST_OFFSET, note, Some(payload_bytes)).encoded_len()
}

/// An owner at work; it owns until it is dropped.
pub(crate) struct Owner {
    start: Option<oneshot::Sender<u64>>,
    published: Option<oneshot::Receiver<Published>>,
    _end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Owner {
    /// Attaches to the connector, and returns when it is the owner. `accepted` is for the progress.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn attach(plan: DeliveryPlan, accepted: Arc<AtomicU64>) -> Result<Self, String> {
        let (start, started) = oneshot::channel();
        let (done, published) = oneshot::channel();
        let (attached, attaching) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("owner".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(attached.send(Err(error.to_string()))),
            };
            LocalSet::new().block_on(&runtime, async {
                let (grpc, attach) = (plan.grpc.clone(), Attached::attach(plan, accepted));
                let owner = match tokio::time::timeout(PATIENCE, attach).await {
                    Ok(Ok(owner)) => owner,
                    Ok(Err(reason)) => return drop(attached.send(Err(format!("{grpc}: {reason}")))),
                    Err(_) => return drop(attached.send(Err(format!("{grpc}: no answer")))),
                };
                drop(attached.send(Ok(())));
                let Ok(begin_ns) = started.await else { return };
                drop(done.send(owner.deliver(begin_ns).await));
                // Goes on answering holds until it is dropped.
                drop(ended.await);
            });
        });
        let thread = thread.map_err(|error| error.to_string())?;
        attaching.blocking_recv().unwrap_or_else(|_| Err("its thread has ended".into()))?;
        Ok(Self { start: Some(start), published: Some(published), _end: end, thread })
    }

    /// Delivers the first message at `begin_ns`, and all others after it.
    pub(crate) fn start(&mut self, begin_ns: u64) {
        // A thread that has ended is told of by `published`.
        self.start.take().map(|start| start.send(begin_ns));
    }

    pub(crate) fn is_done(&self) -> bool {
        self.thread.is_finished() || self.published.as_ref().is_none_or(|published| !published.is_empty())
    }

    /// What became of the messages; waits for it.
    pub(crate) fn published(&mut self) -> Option<Published> {
        self.published.take()?.blocking_recv().ok()
    }
}

/// One partition's stream.
#[derive(Default)]
struct Partition {
    seq: u64,
    offset: u64,
    /// Sent and not acknowledged: number, bytes, intended times.
    flying: VecDeque<(u64, usize, Vec<u64>)>,
}

struct OwnerState {
    partitions: BTreeMap<u32, Partition>,
    flying_bytes: usize,
    published: Published,
    /// The stream has ended.
    gone: Option<String>,
}

struct Attached {
    plan: DeliveryPlan,
    out: mpsc::Sender<FromOwner>,
    state: Rc<RefCell<OwnerState>>,
    /// By room: its partition and channel, and its last ordinal.
    rooms: RefCell<Vec<(u32, String, u64)>>,
    accepted: Arc<AtomicU64>,
}

impl Attached {
    async fn attach(plan: DeliveryPlan, accepted: Arc<AtomicU64>) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("http://{}", plan.grpc)).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let show = SecretInterceptor::new(&Secret::new(&plan.secret)).map_err(|error| error.to_string())?;
        let (out, frames) = mpsc::channel(FRAMES_MAX);
        let mut client = DeliveryClient::with_interceptor(channel, show);
        let answer = client.attach(ReceiverStream::new(frames)).await;
        let mut frames = answer.map_err(|status| status.message().to_owned())?.into_inner();
        match frames.message().await.map_err(|status| status.message().to_owned())? {
            Some(FromHolder { frame: Some(from_holder::Frame::Hello(_)) }) => {}
            other => return Err(format!("no hello but {other:?}")),
        }
        let rooms: Vec<(u32, String, u64)> = (0..plan.schedule.rooms())
            .map(|room| {
                let channel = format!("room:{}", plan.schedule.room_name(room));
                (proto::channel::partition(&channel, plan.partitions), channel, 0)
            })
            .collect();
        let fresh = || Partition { offset: FIRST_OFFSET, ..Partition::default() };
        let partitions: BTreeMap<u32, Partition> = rooms.iter().map(|(partition, ..)| (*partition, fresh())).collect();
        for &partition in partitions.keys() {
            let own = Own {
                topic: Topic::Rooms.into(),
                partition,
                epoch: EPOCH,
                log: "bench".into(),
                partitions: plan.partitions,
            };
            send(&out, from_owner::Frame::Own(own)).await?;
        }
        let published = Published::new(&plan.schedule);
        let state = OwnerState { partitions, flying_bytes: 0, published, gone: None };
        let state = Rc::new(RefCell::new(state));
        tokio::task::spawn_local(listen(frames, state.clone(), out.clone()));
        Ok(Self { plan, out, state, rooms: RefCell::new(rooms), accepted })
    }

    /// Delivers everything at its time; returns when all is acknowledged, or will not be.
    async fn deliver(self, begin_ns: u64) -> Published {
        let mut due = self.plan.schedule.in_time().peekable();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while due.peek().is_some() && self.state.borrow().gone.is_none() {
            looks.tick().await;
            let now_ns = now_ns();
            let intended = |number: &u32| begin_ns + self.plan.schedule.after_ns(*number);
            let mut batches: BTreeMap<u32, FrameItems> = BTreeMap::new();
            while let Some(number) = due.next_if(|number| intended(number) <= now_ns) {
                let intended_ns = intended(&number);
                let (partition, item) = self.item(number, intended_ns);
                record(&mut self.state.borrow_mut().published.lag, (now_ns - intended_ns) / 1000);
                let bytes = item.encoded_len();
                let batch = batches.entry(partition).or_default();
                if batch.bytes + bytes > DELIVER_BYTES_MAX {
                    let full = std::mem::take(batch);
                    self.send(partition, full).await;
                }
                let batch = batches.entry(partition).or_default();
                batch.bytes += bytes;
                batch.items.push(item);
                batch.numbers.push((number, intended_ns));
            }
            for (partition, batch) in batches {
                self.send(partition, batch).await;
            }
        }
        let acknowledged = async {
            while self.state.borrow().flying_bytes > 0 && self.state.borrow().gone.is_none() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let answered = tokio::time::timeout(PATIENCE, acknowledged).await.is_ok();
        let mut state = self.state.borrow_mut();
        let never = due.count() as u64;
        if never > 0 {
            let reason = state.gone.clone().unwrap_or_default();
            *state.published.failed.entry(reason).or_default() += never;
        }
        if !answered {
            state.published.fail(format!("not acknowledged within {} s", PATIENCE.as_secs()));
        }
        let empty = Published::new(&self.plan.schedule);
        std::mem::replace(&mut state.published, empty)
    }

    fn item(&self, number: u32, intended_ns: u64) -> (u32, Item) {
        let schedule = &self.plan.schedule;
        let room = schedule.room_of(number);
        let (partition, channel, ordinal) = &mut self.rooms.borrow_mut()[room as usize];
        let mut state = self.state.borrow_mut();
        let offset = &mut state.partitions.get_mut(partition).expect("every room's partition is there").offset;
        *offset += 1;
        *ordinal += 1;
        let note = Note { run: schedule.run, number, intended_ns };
        let message = message(schedule, room, *offset, note, self.plan.bytes).encode_to_vec().into();
        let item = Item {
            channel: channel.clone(),
            offset: *offset,
            ordinal: *ordinal,
            lane: Lane::Normal.into(),
            message,
            ..Item::default()
        };
        (*partition, item)
    }

    async fn send(&self, partition: u32, batch: FrameItems) {
        if batch.items.is_empty() {
            return;
        }
        let frame = {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if state.flying_bytes + batch.bytes > FLYING_BYTES_MAX {
                for _ in &batch.numbers {
                    state.published.fail("not sent: the connector has not acknowledged 16 MiB");
                }
                return;
            }
            let stream = state.partitions.get_mut(&partition).expect("every room's partition is there");
            stream.seq += 1;
            let through = batch.items.last().map_or(0, |item| item.offset);
            let times = batch.numbers.iter().map(|(_, intended_ns)| *intended_ns).collect();
            stream.flying.push_back((stream.seq, batch.bytes, times));
            state.flying_bytes += batch.bytes;
            for (number, _) in &batch.numbers {
                set(&mut state.published.accepted, *number as usize);
            }
            from_owner::Frame::Deliver(cluster::Deliver {
                partition,
                epoch: EPOCH,
                seq: stream.seq,
                items: batch.items,
                through,
                ..cluster::Deliver::default()
            })
        };
        self.accepted.fetch_add(batch.numbers.len() as u64, Ordering::Relaxed);
        if let Err(reason) = send(&self.out, frame).await {
            self.state.borrow_mut().gone.get_or_insert(reason);
        }
    }
}

/// What goes in one frame.
#[derive(Default)]
struct FrameItems {
    bytes: usize,
    items: Vec<Item>,
    numbers: Vec<(u32, u64)>,
}

async fn send(out: &mpsc::Sender<FromOwner>, frame: from_owner::Frame) -> Result<(), String> {
    out.send(FromOwner { frame: Some(frame) }).await.map_err(|_| "the connector has ended the stream".to_owned())
}

/// Answers holds, takes acknowledgements.
async fn listen(mut frames: Streaming<FromHolder>, state: Rc<RefCell<OwnerState>>, out: mpsc::Sender<FromOwner>) {
    let reason = loop {
        let frame = match frames.message().await {
            Ok(Some(FromHolder { frame: Some(frame) })) => frame,
            Ok(Some(_)) => continue,
            Ok(None) => break "the connector has ended the stream".to_owned(),
            Err(status) => break status.message().to_owned(),
        };
        match frame {
            from_holder::Frame::Hold(hold) => {
                let held = {
                    let mut state = state.borrow_mut();
                    // A room of somebody else: its owner answers.
                    let Some(partition) = state.partitions.get_mut(&hold.partition) else { continue };
                    partition.seq += 1;
                    cluster::Held {
                        partition: hold.partition,
                        epoch: EPOCH,
                        seq: partition.seq,
                        hold: hold.hold,
                        channel: hold.channel,
                        log: "bench".into(),
                        offset: partition.offset,
                        ..cluster::Held::default()
                    }
                };
                if send(&out, from_owner::Frame::Held(held)).await.is_err() {
                    break "the connector has ended the stream".to_owned();
                }
            }
            from_holder::Frame::Acks(cluster::Acks { acks }) => {
                let now_ns = now_ns();
                let mut state = state.borrow_mut();
                let OwnerState { partitions, flying_bytes, published, .. } = &mut *state;
                for ack in acks {
                    let Some(partition) = partitions.get_mut(&ack.partition) else { continue };
                    while let Some((_, bytes, times)) = partition.flying.pop_front_if(|(seq, ..)| *seq <= ack.seq) {
                        *flying_bytes -= bytes;
                        for intended_ns in times {
                            record(&mut published.acceptance, now_ns.saturating_sub(intended_ns) / 1000);
                        }
                    }
                }
            }
            _ => {}
        }
    };
    state.borrow_mut().gone.get_or_insert(reason);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Class;

    #[test]
    fn every_message_of_a_run_is_of_one_length() {
        let class = Class { rooms: 1000, sessions: 1000, rate: 1e6 };
        let schedule = Schedule::new(rand::random(), 1, 1, (0, 10.0), &[class]);
        let bytes = message_bytes(&schedule, 40);
        for (room, offset, number) in [(0, FIRST_OFFSET + 1, 0), (999, FIRST_OFFSET + 200_000_000, 9_999_999)] {
            let note = Note { run: schedule.run, number, intended_ns: u64::MAX };
            assert_eq!(id(note).len(), 22);
            assert_eq!(message(&schedule, room, offset, note, Some(40)).encoded_len(), bytes);
        }
    }
}
