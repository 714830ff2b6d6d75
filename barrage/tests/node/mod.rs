//! Runs a file of `web/test` with Node's own test runner against the binary that was just built.
//!
//! Node, the packages of `web/package-lock.json` (installed at the first need, through npm) and, for the page, Chromium
//! must be there. Where they are not, a test says so and passes; with `CI=true` it fails instead.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Debian's Chromium; `CHROMIUM` names another.
const CHROMIUM: &str = "/usr/bin/chromium";

/// Runs `web/test/<file>`, and panics with what it printed unless every test in it ran and passed.
pub(crate) fn run(file: &str, in_chromium: bool) {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../web");
    if let Err(missing) = prepare(&web, in_chromium) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI this must run, but {missing}");
        eprintln!("SKIPPED: {missing}");
        return;
    }
    let output = Command::new("node")
        .args(["--test", "--test-reporter=spec"])
        .arg(web.join("test").join(file))
        .current_dir(&web)
        .env("BARRAGE_BIN", env!("CARGO_BIN_EXE_barrage"))
        .stdin(Stdio::null())
        .output()
        .expect("node was there a moment ago");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "web/test/{file} failed ({}):\n{said}", output.status);
    let all_ran = !said.contains("pass 0\n") && !said.contains("# SKIP");
    assert!(all_ran, "something in web/test/{file} was skipped:\n{said}");
}

/// What is missing, in words.
fn prepare(web: &Path, in_chromium: bool) -> Result<(), String> {
    let version = Command::new("node").arg("--version").output().map_err(|_| "there is no node")?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_none_or(|major| major < 20) {
        return Err(format!("node is {version}, and 20 or later is needed"));
    }
    let chromium = std::env::var_os("CHROMIUM").map_or_else(|| PathBuf::from(CHROMIUM), PathBuf::from);
    if in_chromium && !chromium.exists() {
        return Err(format!("there is no Chromium at {}", chromium.display()));
    }
    match Command::new("sh").arg(web.join("../scripts/web.sh")).arg("install").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("npm could not install: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("there is no shell: {error}")),
    }
}
