//! What a connection of HTTP may cost.

mod support;

use support::{World, raw, soon, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn connections_over_the_limit_wait_and_are_served_then() {
    let world = World::new().await;
    let logic = world.logic(|config| config.limits.http_connections = 2).await;
    let to = logic.running.http;
    // One that is in use, one that says nothing.
    let mut used = TcpStream::connect(to).await.expect("HTTP listens");
    let request = format!("GET /v1/connect HTTP/1.1\r\nHost: {to}\r\n\r\n");
    used.write_all(request.as_bytes()).await.expect("written");
    let mut answer = [0; 12];
    soon(used.read_exact(&mut answer)).await.expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200");
    let silent = TcpStream::connect(to).await.expect("HTTP listens");

    let third = tokio::spawn(async move { raw(to, &format!("GET /v1/connect HTTP/1.1\nHost: {to}"), b"").await });
    // Waiting cannot be seen from outside; that nothing is answered while both places are taken can, for a moment.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!third.is_finished());
    drop(used);
    assert_eq!(soon(third).await.expect("no panic").status, 200);
    drop(silent);
}

#[tokio::test]
async fn a_head_that_does_not_come_or_does_not_end_closes_the_connection() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let to = logic.running.http;
    let mut silent = TcpStream::connect(to).await.expect("HTTP listens");
    let mut slow = TcpStream::connect(to).await.expect("HTTP listens");
    slow.write_all(format!("GET / HTTP/1.1\r\nHost: {to}\r\nX-Slow: ").as_bytes()).await.expect("written");
    let huge = raw(to, &format!("GET / HTTP/1.1\nHost: {to}\nX-Huge: {}", "x".repeat(64 * 1024)), b"").await;
    assert_eq!(huge.status, 431, "{huge:?}");
    // Drip: a byte now and then does not keep it open.
    let closed = async || slow.write_all(b"x").await.is_err();
    until(closed).await;
    // Nor does saying nothing at all.
    let mut answer = Vec::new();
    let _ = soon(silent.read_to_end(&mut answer)).await;
}

#[tokio::test]
async fn a_request_in_flight_is_finished_after_stop() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let to = logic.running.http;
    let mut stream = TcpStream::connect(to).await.expect("HTTP listens");
    let body = r#"{"text":"the last one"}"#;
    let head = format!(
        "POST /v1/rooms/7/messages HTTP/1.1\r\nHost: {to}\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    // Said when the request is being handled and waits for its body.
    let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    soon(stream.read_exact(&mut go_on)).await.expect("an interim answer");
    logic.stop.cancel();
    until(async || TcpStream::connect(to).await.is_err()).await;
    stream.write_all(body.as_bytes()).await.expect("still there");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"position\""), "{answer}");
    soon(logic.running.join()).await;
}
