//! Publishes at the intended times, through the HTTP API, over some persistent connections.
//!
//! Number n has its time and its connection, and is handed to it at that time whatever has become of those before: in
//! the queue it waits only for the connection, and that wait is part of its latency. A connection sends up to
//! [`PIPELINED_MAX`] requests before their answers; a server handles those of one connection in order (RFC 9112 section
//! 9.3.2), so what one connection publishes to a room has an order that can be checked.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use crate::clock::now_ns;
use crate::dialect::Dialect;
use crate::note::Note;
use crate::schedule::Schedule;
use crate::tally::{microseconds, record, set};
use crate::wire::OPERATION;

/// Requests of one connection that wait for their answers.
const PIPELINED_MAX: usize = 16;
/// Messages that wait for one connection; over it they are not sent, and counted so.
const QUEUE_MAX: usize = 8192;
/// How long answers may take after the last message's time.
const ANSWERS: Duration = Duration::from_secs(15);
/// Before a lost connection is made anew.
const AGAIN: Duration = Duration::from_millis(100);
/// Longest head of an answer, bytes, and most of its members.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// The HTTP API that is published through: goim's call for its dialect, our own for all others.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) dialect: Dialect,
    /// `host:port`.
    pub(crate) host: String,
    pub(crate) api_key: String,
}

impl Api {
    /// Appends the request that publishes `payload` to a room.
    pub(crate) fn request(&self, room: &str, payload: String, out: &mut Vec<u8>) {
        let (target, kind, body) = if self.dialect.is_goim() {
            let target = format!("/goim/push/room?operation={OPERATION}&type=live&room={room}");
            (target, "application/octet-stream", payload)
        } else {
            let body = serde_json::json!({ "type": "text", "text": payload }).to_string();
            (format!("/v1/rooms/{room}/messages"), "application/json", body)
        };
        let key =
            if self.api_key.is_empty() { String::new() } else { format!("Authorization: Bearer {}\r\n", self.api_key) };
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {}\r\n{key}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body.as_bytes());
    }
}

/// What is to be published, and how.
#[derive(Clone)]
pub(crate) struct PublishPlan {
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) api: Api,
    /// Of a payload; `None`: as long as what is said.
    pub(crate) bytes: Option<usize>,
    /// The first message's time, [`now_ns`].
    pub(crate) begin_ns: u64,
}

impl PublishPlan {
    /// When message `number` is to be sent.
    fn intended_ns(&self, number: u32) -> u64 {
        self.begin_ns + self.schedule.after_ns(number)
    }

    /// Appends the request of a message.
    fn request(&self, number: u32, out: &mut Vec<u8>) {
        let note = Note { run: self.schedule.run, number, intended_ns: self.intended_ns(number) };
        let room = self.schedule.room_name(self.schedule.room_of(number));
        self.api.request(&room, note.payload(self.bytes), out);
    }
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Published {
    /// Bit n: message n was accepted (by a connector: sent to it).
    pub(crate) accepted: Vec<u64>,
    /// Refused, not answered or not sent, by reason.
    pub(crate) failed: BTreeMap<String, u64>,
    /// Microseconds from the intended time to when it was written to its connection: ours, if it is large.
    pub(crate) lag: Histogram<u64>,
    /// Microseconds from the intended time to the answer that accepts it (a connector's: that acknowledges it).
    pub(crate) acceptance: Histogram<u64>,
}

impl Published {
    pub(crate) fn new(schedule: &Schedule) -> Self {
        Self {
            accepted: vec![0; (schedule.messages() as usize).div_ceil(64)],
            failed: BTreeMap::new(),
            lag: microseconds(),
            acceptance: microseconds(),
        }
    }

    /// What became of them at two servers that got the same: accepted is what both accepted.
    pub(crate) fn both(mut self, other: Self) -> Self {
        self.accepted.iter_mut().zip(&other.accepted).for_each(|(ours, theirs)| *ours &= theirs);
        for (reason, count) in other.failed {
            *self.failed.entry(reason).or_default() += count;
        }
        for (ours, theirs) in [(&mut self.lag, other.lag), (&mut self.acceptance, other.acceptance)] {
            ours.add(theirs).expect("both have the same bounds");
        }
        self
    }

    pub(crate) fn fail(&mut self, reason: impl Into<String>) {
        *self.failed.entry(reason.into()).or_default() += 1;
    }
}

struct Publisher {
    plan: PublishPlan,
    published: RefCell<Published>,
    /// For the progress.
    accepted: Arc<AtomicU64>,
}

/// Publishes everything; returns when all is answered, or will not be.
///
/// # Errors
/// Where there is no runtime to be had.
pub(crate) fn run(plan: PublishPlan, accepted: Arc<AtomicU64>) -> Result<Published, std::io::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let schedule = plan.schedule.clone();
    let published = Published::new(&schedule);
    let publisher = Rc::new(Publisher { plan, published: RefCell::new(published), accepted });
    LocalSet::new().block_on(&runtime, async {
        let mut connections = JoinSet::new();
        let mut queues = Vec::new();
        for _ in 0..schedule.publishers {
            let (queue, messages) = mpsc::channel(QUEUE_MAX);
            queues.push(queue);
            connections.spawn_local(connection(publisher.clone(), messages));
        }
        for number in schedule.in_time() {
            let early_ns = publisher.plan.intended_ns(number).saturating_sub(now_ns());
            // A sleep ends up to a millisecond late: what is due by now goes without one.
            if early_ns > 0 {
                tokio::time::sleep(Duration::from_nanos(early_ns)).await;
            }
            if queues[(number % schedule.publishers) as usize].try_send(number).is_err() {
                publisher.published.borrow_mut().fail("not sent: its connection's queue was full");
            }
        }
        drop(queues);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(ANSWERS, all).await.is_err() {
            connections.shutdown().await;
        }
    });
    let publisher = Rc::into_inner(publisher).expect("the tasks that shared it have ended");
    let mut published = publisher.published.into_inner();
    let known = published.accepted.iter().map(|word| u64::from(word.count_ones())).sum::<u64>()
        + published.failed.values().sum::<u64>();
    let silent = u64::from(schedule.messages()).saturating_sub(known);
    if silent > 0 {
        published.failed.insert(format!("not answered within {} s", ANSWERS.as_secs()), silent);
    }
    Ok(published)
}

/// One connection's messages, over as many connections as it takes.
async fn connection(publisher: Rc<Publisher>, mut messages: mpsc::Receiver<u32>) {
    let mut waiting = VecDeque::new();
    loop {
        let reason = match TcpStream::connect(&publisher.plan.api.host).await {
            Ok(stream) => match converse(&publisher, stream, &mut messages, &mut waiting).await {
                Ok(()) => return,
                Err(reason) => reason,
            },
            Err(error) => {
                // Whatever is due now cannot be sent: it is not kept for later, or the rate would be another.
                while let Ok(number) = messages.try_recv() {
                    waiting.push_back(number);
                }
                format!("{}: {error}", publisher.plan.api.host)
            }
        };
        for _ in waiting.drain(..) {
            publisher.published.borrow_mut().fail(reason.clone());
        }
        if messages.is_closed() && messages.is_empty() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Sends and takes answers; `Ok` when there is nothing more to send and everything is answered.
async fn converse(
    publisher: &Publisher,
    mut stream: TcpStream,
    messages: &mut mpsc::Receiver<u32>,
    waiting: &mut VecDeque<u32>,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut more = true;
    while more || !waiting.is_empty() {
        tokio::select! {
            number = messages.recv(), if more && waiting.len() < PIPELINED_MAX => match number {
                Some(number) => {
                    output.clear();
                    publisher.plan.request(number, &mut output);
                    waiting.push_back(number);
                    let lag_ns = now_ns().saturating_sub(publisher.plan.intended_ns(number));
                    record(&mut publisher.published.borrow_mut().lag, lag_ns / 1000);
                    stream.write_all(&output).await.map_err(|error| error.to_string())?;
                }
                None => more = false,
            },
            read = stream.read_buf(&mut input), if !waiting.is_empty() => {
                if read.map_err(|error| error.to_string())? == 0 {
                    return Err("the server closed the connection".into());
                }
                while let Some((answer, bytes)) = Answer::read(&input)? {
                    let number = waiting.pop_front().ok_or("an answer to nothing")?;
                    publisher.answered(number, &answer);
                    input.drain(..bytes);
                }
            }
        }
    }
    Ok(())
}

impl Publisher {
    fn answered(&self, number: u32, answer: &Answer<'_>) {
        let mut published = self.published.borrow_mut();
        match answer.accepted(self.plan.api.dialect) {
            Ok(()) => {
                set(&mut published.accepted, number as usize);
                self.accepted.fetch_add(1, Ordering::Relaxed);
                let took_ns = now_ns().saturating_sub(self.plan.intended_ns(number));
                record(&mut published.acceptance, took_ns / 1000);
            }
            Err(reason) => published.fail(reason),
        }
    }
}

/// An answer of HTTP/1.1 with a length.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer<'a> {
    status: u16,
    body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The first answer in `input` and its length; `None` while it is incomplete.
    pub(crate) fn read(input: &'a [u8]) -> Result<Option<(Self, usize)>, String> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let body = match head.parse(input).map_err(|error| format!("not an HTTP answer: {error}"))? {
            httparse::Status::Complete(body) => body,
            httparse::Status::Partial if input.len() > HEAD_BYTES_MAX => return Err("a head without end".into()),
            httparse::Status::Partial => return Ok(None),
        };
        let status = head.code.unwrap_or_default();
        let length = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = match length {
            Some(header) => std::str::from_utf8(header.value).ok().and_then(|value| value.trim().parse().ok()),
            None if status == 204 => Some(0),
            None => None,
        };
        let length: usize = length.ok_or("an answer without a length")?;
        let Some(bytes) = input.get(body..).and_then(|rest| rest.get(..length)) else { return Ok(None) };
        Ok(Some((Self { status, body: bytes }, body + length)))
    }

    /// goim answers 200 to everything, and says in the body how it is.
    pub(crate) fn accepted(&self, dialect: Dialect) -> Result<(), String> {
        let code = || serde_json::from_slice::<serde_json::Value>(self.body).ok()?.get("code")?.as_i64();
        if (200..300).contains(&self.status) && (!dialect.is_goim() || code() == Some(0)) {
            return Ok(());
        }
        /// Of a body, characters that are shown: enough for an error's name.
        const SHOWN: usize = 120;
        let body: String = String::from_utf8_lossy(self.body).chars().take(SHOWN).collect();
        Err(format!("{} {body}", self.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_behind_the_other_in_any_split() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{\"code\":0}HTTP/1.1 204 No Content\r\n\r\n";
        let (first, length) = Answer::read(bytes).unwrap().unwrap();
        assert_eq!(first, Answer { status: 200, body: b"{\"code\":0}" });
        assert_eq!(Answer::read(&bytes[length..]).unwrap().unwrap().0, Answer { status: 204, body: b"" });
        for cut in 0..length {
            assert_eq!(Answer::read(&bytes[..cut]), Ok(None));
        }
        assert!(Answer::read(b"hello world").is_err());
    }

    #[test]
    fn a_refusal_is_not_an_acceptance() {
        let refused = Answer { status: 200, body: b"{\"code\":-400}" };
        assert!(refused.accepted(Dialect::Goim).is_err());
        assert!(Answer { status: 200, body: b"{\"code\":0}" }.accepted(Dialect::Goim).is_ok());
        assert!(Answer { status: 429, body: b"" }.accepted(Dialect::Native).is_err());
        assert!(Answer { status: 200, body: b"{}" }.accepted(Dialect::Native).is_ok());
    }
}
