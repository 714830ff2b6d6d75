//! `barrage bench` against a server of its own: it ends by itself and tells what it measured, in every dialect.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::process::Command;

use server::Server;

/// Of the cluster whose connectors the bench delivers to.
const SECRET: &str = "a secret of at least thirty-two characters";

fn bench(line: &str) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_barrage"));
    let command = command.arg("bench").args(line.split_whitespace()).arg("--json");
    let output = command.env("BARRAGE_CLUSTER__SECRET", SECRET).output().unwrap();
    let (out, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{line}: {out}{error}");
    serde_json::from_str(&out).unwrap()
}

/// As a job delivers, so that nothing but the connector is between.
#[test]
fn a_connector_delivers_everything_in_every_dialect() {
    for (more, bytes) in [
        ("--wire-bytes 123", Some(123.0)),
        ("--wire-bytes 131 --tcp", Some(131.0)),
        ("--dialect goim --tcp --wire-bytes 123", Some(123.0)),
        ("--dialect goim", None),
        ("--chat --compress", None),
        ("--chat --compress --dialect goim", None),
        ("--dialect bilibili", None),
        ("--dialect bilibili-zlib", None),
        ("--dialect bilibili-brotli --tcp", None),
    ] {
        let line =
            "fanout --stand --no-limit --via connector --seconds 1 --warm-up 0 --room-sizes 15,2x3 --rates 40,20";
        let report = bench(&format!("{line} --check 2 {more}"));
        let deliveries = &report["deliveries"];
        assert_eq!((&deliveries["expected"], &deliveries["delivered"]), (&660.into(), &660.into()), "{more}");
        assert_eq!(deliveries["unequal_sessions"], 0, "{more}");
        if let Some(bytes) = bytes {
            assert_eq!(deliveries["bytes_each"], bytes, "{more}");
        }
        let connector = &report["server"]["connector"];
        assert!(connector["writes"].as_u64().unwrap() > 0 && connector["skipped"] == 0, "{more}: {connector}");
        assert!(report["server"]["usage"]["cores_s"].as_f64().unwrap() > 0.0, "{more}");
    }
}

#[test]
fn the_whole_pipeline_delivers_and_answers_beside_it() {
    let report =
        bench("fanout --stand --no-limit --seconds 1 --warm-up 0 --viewers 10 --rate 40 --probe --dialect goim");
    assert_eq!(report["deliveries"]["delivered"], 400);
    let probes = &report["probes"];
    assert!(probes["heartbeats_answered"].as_u64().unwrap() > 0 && probes["joins_answered"].as_u64().unwrap() > 0);
    assert_eq!((&probes["heartbeats_failed"], &probes["joins_failed"]), (&0.into(), &0.into()));
}

#[test]
fn workers_count_together_what_each_of_them_sees() {
    for more in
        ["--wire-bytes 123", "--dialect goim --tcp --wire-bytes 123", "--chat --compress", "--dialect bilibili-zlib"]
    {
        let line =
            "fanout --stand --no-limit --via connector --seconds 1 --warm-up 10 --room-sizes 15,2x3 --rates 40,20";
        let report = bench(&format!("{line} --check 4 --workers 3 {more}"));
        let deliveries = &report["deliveries"];
        // The small rooms' ten before the measurement take a second, for the large one it is 40.
        let all = 2 * 660;
        assert_eq!((&deliveries["expected"], &deliveries["delivered"]), (&all.into(), &all.into()), "{more}: {report}");
        let measured = report["server"]["connector"]["writes"].as_u64().unwrap();
        assert!((1..all * 3 / 4).contains(&measured), "{more}: {report}");
        // One in four of the 15, one of each three; whoever is not checked may be another worker's.
        assert_eq!(
            (&deliveries["checked_sessions"], &deliveries["unequal_sessions"]),
            (&6.into(), &0.into()),
            "{more}"
        );
        assert_eq!(report["sessions"]["viewers"], 21, "{more}");
        let classes = report["classes"].as_array().unwrap();
        assert!(classes.iter().all(|class| class["latency"]["max"].as_f64().unwrap() > 0.0), "{more}: {report}");
        assert!(report["client_cpus"].as_f64().unwrap() > 0.0);
    }
}

/// To fewer connections a write costs less: the comparison would be unfair.
#[test]
fn the_limit_beside_a_run_has_as_many_connections() {
    let report = bench("fanout --stand --via connector --seconds 1 --room-sizes 15,2x3 --rates 40,20");
    let rows = report["limit"].as_array().unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|row| row["sessions"] == 21), "{report}");
}

/// As many connectors as their descriptors require, each with its share of every room.
#[test]
fn several_connectors_share_the_viewers_of_each_room() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let secret = format!("\"{SECRET}\"");
    let servers = directories
        .each_ref()
        .map(|directory| Server::run(directory.path(), &[("connector.cores", "1"), ("cluster.secret", &secret)]));
    let all = |of: &dyn Fn(&Server) -> String| servers.iter().map(of).collect::<Vec<_>>().join(",");
    let line = format!(
        "fanout --via connector --seconds 1 --warm-up 0 --viewers 21 --rooms 2 --rate 40 --check 3 --workers 2 --dialect goim --probe \
         --connect {} --grpc {} --admin {} --server-pid {}",
        all(&|server| server.clients().to_string()),
        all(&|server| server.addresses("connector-grpc")[0].to_string()),
        all(&|server| format!("http://{}", server.admin())),
        all(&|server| server.pid().to_string()),
    );
    let report = bench(&line);
    let deliveries = &report["deliveries"];
    assert_eq!((&deliveries["expected"], &deliveries["delivered"]), (&420.into(), &420.into()), "{report}");
    assert_eq!(
        (&deliveries["unequal_sessions"], &report["published"]["accepted"]),
        (&0.into(), &40.into()),
        "{report}"
    );
    // Each has written, and both are in the sum.
    let writes = servers.each_ref().map(|server| {
        let metrics = ureq::get(&format!("http://{}/metrics", server.admin())).call().unwrap();
        let metrics = metrics.into_body().read_to_string().unwrap();
        let count = metrics.lines().find_map(|line| line.strip_prefix("barrage_connector_writes_total "));
        count.unwrap_or_else(|| panic!("{metrics}")).parse::<u64>().unwrap()
    });
    let counted = report["server"]["connector"]["writes"].as_u64().unwrap();
    assert!(writes.iter().all(|writes| *writes > 0) && counted > 0, "{writes:?}: {report}");
    assert!(report["server"]["usage"]["cores_s"].as_f64().unwrap() > 0.0, "{report}");
}
