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
async fn a_kept_connection_outlives_a_heads_time_and_ends_when_idle() {
    let world = World::new().await;
    let logic = world.logic(|config| config.limits.http_idle_s = 12).await;
    let to = logic.running.http;
    let mut kept = TcpStream::connect(to).await.expect("HTTP listens");
    let begun = std::time::Instant::now();
    let request = format!("GET /v1/connect HTTP/1.1\r\nHost: {to}\r\n\r\n");
    kept.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    soon(kept.read_to_end(&mut answer)).await.expect("it ends in order");
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    // Longer than a head may take.
    assert!(begun.elapsed() >= std::time::Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_writes_a_large_body_first_reads_why_it_is_refused() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let to = logic.running.http;
    let body = vec![b'a'; 10 << 20];
    for (path, headers, status) in [
        ("/v1/rooms/1/messages", "", 413),
        ("/v1/messages", "", 413),
        ("/goim/push/room?operation=1000&type=live&room=1", "", 200),
        ("/v2/x", "", 404),
        ("/v1/rooms/1/messages", "\r\nOrigin: http://evil.example", 403),
    ] {
        let mut stream = TcpStream::connect(to).await.expect("HTTP listens");
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: {to}{headers}\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("written");
        soon(stream.write_all(&body)).await.unwrap_or_else(|error| panic!("{path}{headers}: {error}"));
        let mut answer = [0; 12];
        soon(stream.read_exact(&mut answer)).await.unwrap_or_else(|error| panic!("{path}{headers}: {error}"));
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {status}"), "{path}{headers}");
    }
}

#[tokio::test]
async fn a_request_with_two_lengths_is_refused_and_its_connection_closed() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let to = logic.running.http;
    let pipelined = format!("GET /nothing HTTP/1.1\r\nHost: {to}\r\n\r\n");
    for (lengths, before) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", ""),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", ""),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", &pipelined),
    ] {
        let mut stream = TcpStream::connect(to).await.expect("HTTP listens");
        let request = format!("{before}POST /v1/rooms/7/messages HTTP/1.1\r\nHost: {to}\r\n{lengths}\r\n\r\n0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.expect("it ends in order");
        let answer = String::from_utf8_lossy(&answer);
        let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
        let expected: &[&str] = if before.is_empty() { &["400"] } else { &["404", "400"] };
        assert_eq!(statuses, expected, "{lengths}: {answer}");
        assert!(answer.contains("RFC 9112"), "{lengths}: {answer}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused_in_ten_seconds() {
    let world = World::new().await;
    let logic = world.logic(|_| {}).await;
    let to = logic.running.http;
    let mut stream = TcpStream::connect(to).await.expect("HTTP listens");
    let begun = std::time::Instant::now();
    let head = format!("POST /v1/rooms/7/messages HTTP/1.1\r\nHost: {to}\r\nContent-Length: 26\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.expect("it ends in order");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("too_slow"), "{answer}");
    assert!(begun.elapsed() >= std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
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
