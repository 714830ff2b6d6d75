//! The gate: what connectors ask of logic, over one ordered stream for each (connector, logic).
//!
//! Flow: `GateRequests` ─▶ each request in its order: checked, and handed to the bus where it publishes ─▶ `GateReplies`
//! as the answers come; those that are ready together go together.
//!
//! Invariants:
//! - `requests_are_published_in_the_order_of_the_stream`: nothing of a stream is looked at before everything before it
//!   has its place in the bus (rule 16);
//! - every request that was read is answered, also when this logic stops;
//! - at most [`WAITING_MAX`] requests of a stream wait for the bus; then nothing more is read from it, and the
//!   connector feels it as back-pressure.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use proto::client::{Error, ErrorCode};
use proto::cluster::gate_reply::Answer;
use proto::cluster::gate_request::Ask;
use proto::cluster::{Displaced, GateReplies, GateReply, GateRequest, GateRequests, Joined, Published};
use proto::config::Secret;
use proto::error::error;
use rpc::cluster::gate_server::{Gate, GateServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::client::Clients;
use crate::clock::now_ms;
use crate::metrics::Metrics;
use crate::publish::Accepting;

/// Most requests of one stream that wait for the bus, about 1 KiB each: 4 MiB a connector. At 10 ms a commit that is
/// 400,000 messages a second.
const WAITING_MAX: usize = 4_096;

/// Most answers in one message: an admission with all its patterns is 17 KiB, and a connector takes messages of 4 MiB.
const REPLIES_MAX: usize = 128;

/// Messages with answers that a connector has not taken; further ones wait.
const UNSENT_MAX: usize = 16;

/// Longest message from a connector, bytes: some hundred publishes of 4 KiB.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// The service.
pub(crate) struct GateService {
    pub(crate) clients: Arc<Clients>,
    pub(crate) metrics: Metrics,
    pub(crate) secret: Secret,
    pub(crate) stop: CancellationToken,
}

impl GateService {
    pub(crate) fn server(self) -> GateServer<Self> {
        GateServer::new(self).max_decoding_message_size(REQUEST_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Gate for GateService {
    type ServeStream = ReceiverStream<Result<GateReplies, Status>>;

    async fn serve(&self, request: Request<Streaming<GateRequests>>) -> Result<Response<Self::ServeStream>, Status> {
        rpc::secret::check(&request, &self.secret)?;
        let (replies, out) = mpsc::channel(UNSENT_MAX);
        let stream = Stream {
            clients: self.clients.clone(),
            metrics: self.metrics.clone(),
            waiting: FuturesUnordered::new(),
            ready: Vec::new(),
            replies,
        };
        tokio::spawn(stream.run(request.into_inner(), self.stop.clone()));
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

/// One connector's stream.
struct Stream {
    clients: Arc<Clients>,
    metrics: Metrics,
    waiting: FuturesUnordered<futures::future::BoxFuture<'static, GateReply>>,
    ready: Vec<GateReply>,
    replies: mpsc::Sender<Result<GateReplies, Status>>,
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<GateRequests>, stop: CancellationToken) {
        let mut reading = true;
        while reading || !self.waiting.is_empty() {
            tokio::select! {
                () = stop.cancelled(), if reading => reading = false,
                message = requests.message(), if reading && self.waiting.len() < WAITING_MAX => match message {
                    Ok(Some(message)) => message.requests.into_iter().for_each(|request| self.handle(request)),
                    Ok(None) => reading = false,
                    Err(status) => {
                        tracing::debug!(%status, "a connector's stream ended");
                        reading = false;
                    }
                },
                Some(reply) = self.waiting.next(), if !self.waiting.is_empty() => self.ready(reply),
            }
            if self.send().await.is_err() {
                // The connector is gone; what it asked is in the bus all the same.
                self.metrics.gate_waiting.dec_by(self.waiting.len() as i64);
                return;
            }
        }
    }

    fn ready(&mut self, reply: GateReply) {
        self.metrics.gate_waiting.dec();
        self.ready.push(reply);
    }

    /// Sends what is ready. Answers that are there already go along.
    async fn send(&mut self) -> Result<(), ()> {
        while self.ready.len() < REPLIES_MAX {
            match self.waiting.next().now_or_never() {
                Some(Some(reply)) => self.ready(reply),
                Some(None) | None => break,
            }
        }
        while !self.ready.is_empty() {
            let rest = self.ready.split_off(self.ready.len().min(REPLIES_MAX));
            let replies = std::mem::replace(&mut self.ready, rest);
            self.replies.send(Ok(GateReplies { replies })).await.map_err(drop)?;
        }
        Ok(())
    }

    /// Takes one request: whatever has an order has taken it when this returns.
    fn handle(&mut self, GateRequest { id, ask }: GateRequest) {
        let now_ms = now_ms();
        match ask {
            Some(Ask::Authenticate(ask)) => {
                let answer = self.clients.authenticate(&ask, now_ms);
                self.metrics.asked("authenticate", &answer);
                for _ in answer.iter().flat_map(|admitted| &admitted.joined) {
                    self.metrics.asked("join", &answer);
                }
                self.reply(id, answer.map(Answer::Admitted));
            }
            Some(Ask::Join(ask)) => {
                let answer = self.clients.join(&ask, now_ms);
                self.metrics.asked("join", &answer);
                self.reply(id, answer.map(|()| Answer::Joined(Joined {})));
            }
            Some(Ask::Publish(ask)) => {
                let read = Instant::now();
                let accepting = self.clients.publish(ask, now_ms);
                self.metrics.accepted(read.elapsed());
                self.wait(id, "publish", accepting, |id| Answer::Published(Published { id }));
            }
            Some(Ask::Displace(ask)) => {
                let accepting = self.clients.displace(ask, now_ms);
                self.wait(id, "displace", accepting, |_| Answer::Displaced(Displaced {}));
            }
            None => self.reply(id, Err(error(ErrorCode::BadRequest, "an ask that this version does not know"))),
        }
    }

    fn wait(&mut self, id: u64, ask: &'static str, accepting: Result<Accepting, Error>, done: fn(String) -> Answer) {
        match accepting {
            Err(refused) => {
                let answer = Err(refused);
                self.metrics.asked(ask, &answer);
                self.reply(id, answer);
            }
            Ok(accepting) => {
                let (metrics, since) = (self.metrics.clone(), Instant::now());
                let waiting = accepting.map(move |answer| {
                    metrics.asked(ask, &answer);
                    metrics.durable(since.elapsed());
                    GateReply { id, answer: Some(answer.map_or_else(Answer::Error, |accepted| done(accepted.id))) }
                });
                self.metrics.gate_waiting.inc();
                self.waiting.push(waiting.boxed());
            }
        }
    }

    fn reply(&mut self, id: u64, answer: Result<Answer, Error>) {
        self.ready.push(GateReply { id, answer: Some(answer.unwrap_or_else(Answer::Error)) });
    }
}
