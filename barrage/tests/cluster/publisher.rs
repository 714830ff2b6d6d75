//! Publishes through the HTTP API of every logic, at a pace, from several senders, each waiting for its last message's
//! answer; now and then a sender repeats one, as who has not heard the answer does.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// An accepted message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) room: usize,
    pub(crate) offset: u64,
    pub(crate) number: u32,
    pub(crate) sender: usize,
}

pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU32>,
    sent: Arc<Mutex<Vec<Sent>>>,
    tasks: JoinSet<()>,
}

/// Senders, each with a connection to every logic.
pub(crate) const SENDERS: usize = 16;

impl Publisher {
    /// Begins to publish `per_s` messages a second to random rooms, numbered from `first` on.
    pub(crate) fn start(logics: Vec<SocketAddr>, rooms: Arc<[String]>, per_s: usize, first: u32) -> Self {
        let (stop, next, sent) = (Arc::default(), Arc::new(AtomicU32::new(first)), Arc::default());
        let mut publisher = Self { stop, next, sent, tasks: JoinSet::new() };
        let every = Duration::from_secs_f64(SENDERS as f64 / per_s as f64);
        for sender in 0..SENDERS {
            let (stop, next, sent) = (publisher.stop.clone(), publisher.next.clone(), publisher.sent.clone());
            let (logics, rooms) = (logics.clone(), rooms.clone());
            publisher.tasks.spawn(async move {
                let mut connections = Vec::new();
                for logic in logics {
                    connections.push(Http::connect(logic).await);
                }
                let mut pace = interval_at(Instant::now() + every.mul_f64(sender as f64 / SENDERS as f64), every);
                pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
                while !stop.load(Ordering::Relaxed) {
                    pace.tick().await;
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let room = rand::random_range(0..rooms.len());
                    let id = room_id(&rooms[room]);
                    let body = json!({
                        "text": format!("{number} from {sender}"),
                        "client_message_id": format!("message-{number}"),
                        "from": { "uid": format!("sender-{sender}") },
                    });
                    let path = format!("/v1/rooms/{id}/messages");
                    let at = number as usize % connections.len();
                    let answer = connections[at].ask("POST", &path, Some(&body)).await;
                    let offset = answer["position"]["offset"].as_u64().unwrap_or_else(|| panic!("refused: {answer}"));
                    sent.lock().expect("not poisoned").push(Sent { room, offset, number, sender });
                    if number.is_multiple_of(50) {
                        let other = (at + 1) % connections.len();
                        let again = connections[other].ask("POST", &path, Some(&body)).await;
                        assert_eq!(again["id"], answer["id"], "the same message has the same ID through any logic");
                    }
                }
            });
        }
        publisher
    }

    pub(crate) fn accepted(&self) -> usize {
        self.sent.lock().expect("not poisoned").len()
    }

    /// Ends, and tells what was accepted.
    pub(crate) async fn end(mut self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a sender failed");
        }
        std::mem::take(&mut *self.sent.lock().expect("not poisoned"))
    }
}

fn room_id(channel: &str) -> &str {
    channel.strip_prefix("room:").expect("a room")
}

/// One HTTP/1.1 connection that is kept.
pub(crate) struct Http(BufReader<TcpStream>, SocketAddr);

impl Http {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("logic listens");
        socket.set_nodelay(true).expect("a fresh socket");
        Self(BufReader::new(socket), address)
    }

    /// `None`: nobody listens there.
    pub(crate) async fn try_connect(address: SocketAddr) -> Option<Self> {
        let socket = TcpStream::connect(address).await.ok()?;
        socket.set_nodelay(true).ok()?;
        Some(Self(BufReader::new(socket), address))
    }

    /// As [`Http::ask`], once: `None` where the connection ends before the answer.
    pub(crate) async fn try_ask(&mut self, method: &str, path: &str, body: &Value) -> Option<Value> {
        self.0.write_all(self.request(method, path, &body.to_string()).as_bytes()).await.ok()?;
        let (_, answer) = self.answer().await?;
        serde_json::from_slice(&answer).ok()
    }

    /// The JSON that is answered, whatever the status.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (_, answer) = self.exchange(method, path, &body.map(Value::to_string).unwrap_or_default()).await;
        serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&answer)))
    }

    /// Status and body.
    pub(crate) async fn get(&mut self, path: &str) -> (u16, Vec<u8>) {
        self.exchange("GET", path, "").await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &str) -> (u16, String) {
        let (status, answer) = self.exchange("POST", path, body).await;
        (status, String::from_utf8_lossy(&answer).into_owned())
    }

    async fn exchange(&mut self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        let (address, request) = (self.1, self.request(method, path, body));
        // A server may end a connection between two requests: the second try is on a new one.
        for _ in 0..2 {
            if self.0.write_all(request.as_bytes()).await.is_ok()
                && let Some(answer) = self.answer().await
            {
                return answer;
            }
            *self = Self::connect(address).await;
        }
        panic!("{address} closed a fresh connection");
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let (address, length) = (self.1, body.len());
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    /// `None`: the connection was closed before an answer.
    async fn answer(&mut self) -> Option<(u16, Vec<u8>)> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match self.0.read_line(&mut line).await {
                Ok(1..) => {}
                _ if head.is_empty() => return None,
                broken => panic!("half an answer: {broken:?}"),
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_ascii_lowercase());
        }
        let status = head[0].split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
        let length = head.iter().find_map(|line| line.strip_prefix("content-length:")).expect("a length");
        let mut body = vec![0; length.trim().parse().expect("a length")];
        self.0.read_exact(&mut body).await.expect("the server answers");
        Some((status, body))
    }
}
