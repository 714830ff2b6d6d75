//! `barrage bench` against a server of its own: it ends by itself and tells what it measured, in every dialect.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

fn bench(line: &str) -> serde_json::Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_barrage"));
    let output = command.arg("bench").args(line.split_whitespace()).arg("--json").output().unwrap();
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
        let line = "fanout --stand --no-limit --via connector --seconds 1 --room-sizes 15,2x3 --rates 40,20 --check 2";
        let report = bench(&format!("{line} {more}"));
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
    let report = bench("fanout --stand --no-limit --seconds 1 --viewers 10 --rate 40 --probe --dialect goim");
    assert_eq!(report["deliveries"]["delivered"], 400);
    let probes = &report["probes"];
    assert!(probes["heartbeats_answered"].as_u64().unwrap() > 0 && probes["joins_answered"].as_u64().unwrap() > 0);
    assert_eq!((&probes["heartbeats_failed"], &probes["joins_failed"]), (&0.into(), &0.into()));
}
