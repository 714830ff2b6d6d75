//! Runs a fuzz body on files or folders of inputs: a failure that fuzzing found, or a whole corpus.
//!
//! ```sh
//! cargo run -p proto --features fuzz --example replay -- websocket fuzz/artifacts/websocket/crash-...
//! ```

use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let body = match arguments.next().as_deref() {
        Some("bilibili") => proto::bilibili_fuzz::run,
        Some("goim") => proto::goim_fuzz::run,
        Some("http") => proto::http_fuzz::run,
        Some("native") => proto::native_fuzz::run,
        Some("packet") => proto::packet_fuzz::run,
        Some("sniff") => proto::sniff_fuzz::run,
        Some("websocket") => proto::websocket_fuzz::run,
        other => return Err(std::io::Error::other(format!("{other:?} is no target of fuzz/"))),
    };
    let mut inputs = Vec::new();
    for path in arguments {
        files(Path::new(&path), &mut inputs)?;
    }
    for path in &inputs {
        body(&std::fs::read(path)?);
    }
    println!("{} inputs, no failure", inputs.len());
    Ok(())
}

fn files(path: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            files(&entry?.path(), found)?;
        }
    } else {
        found.push(path.to_owned());
    }
    Ok(())
}
