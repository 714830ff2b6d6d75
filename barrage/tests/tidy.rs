//! The rules of the house that the compiler does not know.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// Files that git tracks, below the root.
fn tracked(endings: &[&str]) -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().expect("git is installed");
    String::from_utf8(output.stdout)
        .expect("paths are UTF-8")
        .split('\0')
        .filter(|path| endings.iter().any(|ending| path.ends_with(ending)))
        .map(PathBuf::from)
        .filter(|path| root().join(path).is_file())
        .collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_rust_file_says_what_it_is() {
    let silent: Vec<PathBuf> = tracked(&[".rs"]).into_iter().filter(|path| !read(path).starts_with("//!")).collect();
    assert!(silent.is_empty(), "no `//!` on the first line: {silent:?}");
}

#[test]
fn no_room_is_called_by_a_name_that_fits_everything() {
    for path in tracked(&[".rs", ".ts"]) {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        assert!(
            !["utils", "util", "common", "helpers", "helper", "manager", "misc"].contains(&stem),
            "{}: name it by its noun",
            path.display()
        );
    }
}

#[test]
fn the_engine_knows_no_socket_clock_or_runtime() {
    let banned = [
        "std::time",
        "Instant::",
        "SystemTime",
        "TcpStream",
        "UdpSocket",
        "std::os::fd",
        "socket2",
        "libc::",
        "tokio",
        "monoio",
        "thread::",
    ];
    let of_the_engine = |path: &PathBuf| path.starts_with("connector/engine") || path.starts_with("connector/machine");
    let sources: Vec<PathBuf> = tracked(&[".rs"]).into_iter().filter(of_the_engine).collect();
    assert!(sources.len() > 20, "only {sources:?} were found");
    for path in sources {
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in banned {
                assert!(!code.contains(word), "{}:{}: {word}", path.display(), number + 1);
            }
        }
    }
}

/// Everything that `package` is built with, itself included.
fn dependencies(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", package, "-e", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .expect("cargo is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("names are ASCII");
    let mut names: Vec<String> = tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Crates that read a clock, open a socket or run tasks.
const RUNTIMES: &[&str] = &[
    "async-io",
    "chrono",
    "futures-timer",
    "glommio",
    "hyper",
    "io-uring",
    "mio",
    "monoio",
    "nix",
    "quanta",
    "rdkafka",
    "redis",
    "rustix",
    "signal-hook",
    "smol",
    "socket2",
    "time",
    "tokio",
    "tonic",
];

fn has_a_runtime(package: &str) -> Vec<String> {
    dependencies(package).into_iter().filter(|name| RUNTIMES.contains(&name.as_str())).collect()
}

#[test]
fn proto_needs_no_runtime() {
    assert!(dependencies("proto").contains(&"prost".to_owned()), "the tool finds what is there");
    assert_eq!(has_a_runtime("proto"), [""; 0]);
}

#[test]
fn the_engine_depends_on_nothing_of_ours_but_proto_and_its_contract() {
    let engine = dependencies("engine");
    let manifest = read(Path::new("Cargo.toml"));
    let ours = |name: &&String| manifest.contains(&format!("\n{name} = {{ path = "));
    assert_eq!(engine.iter().filter(ours).collect::<Vec<_>>(), ["engine", "machine", "proto"]);
    assert_eq!(has_a_runtime("engine"), [""; 0]);
    // The same search finds runtimes where they are.
    let connector = has_a_runtime("connector");
    for runtime in ["io-uring", "monoio", "tokio"] {
        assert!(connector.contains(&runtime.to_owned()), "{runtime} is not found below connector: {connector:?}");
    }
    assert_eq!(dependencies("machine"), ["machine"]);
}

#[test]
fn unsafe_stands_in_the_drivers_only() {
    for path in tracked(&[".rs"]) {
        if path.starts_with("connector/src/driver") || path.ends_with("tidy.rs") {
            continue;
        }
        assert!(!read(&path).contains("unsafe {"), "{}", path.display());
    }
}

/// Words in backquotes that look like a path of this tree (they contain a slash and an ending, or end in a slash).
fn paths_in(text: &str) -> Vec<&str> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| !word.contains([' ', '*', '<', '{', ':', '$']) && word.contains('/') && !word.starts_with('/'))
        .filter(|word| word.ends_with('/') || word.rsplit('/').next().is_some_and(|name| name.contains('.')))
        .collect()
}

#[test]
fn the_map_names_only_what_is_there() {
    let mut pages = tracked(&[".md"]);
    pages.retain(|page| page.parent() == Some(Path::new("")) || page.starts_with("docs"));
    assert!(pages.len() >= 8, "only {pages:?} were found");
    for page in pages {
        for path in paths_in(&read(&page)) {
            assert!(root().join(path).exists(), "{} names {path}, which is not there", page.display());
        }
    }
    let map = read(Path::new("ARCHITECTURE.md"));
    let manifest = read(Path::new("Cargo.toml"));
    let members = manifest.lines().find(|line| line.starts_with("members")).expect("the workspace has members");
    for member in members.split('"').skip(1).step_by(2) {
        assert!(map.contains(member), "ARCHITECTURE.md does not name the crate {member}");
    }
}

#[test]
fn the_map_is_read_in_ten_minutes() {
    let map = read(Path::new("ARCHITECTURE.md"));
    assert!(map.lines().count() <= 200, "ARCHITECTURE.md has {} lines", map.lines().count());
    for (number, line) in map.lines().enumerate() {
        assert!(line.chars().count() <= 120, "ARCHITECTURE.md:{} is too long", number + 1);
    }
}

#[test]
fn every_invariant_names_tests_that_are_there() {
    let sources: String = tracked(&[".rs"]).iter().map(|path| read(path)).collect();
    let map = read(Path::new("ARCHITECTURE.md"));
    let table = map.split("## Invariants").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("the table");
    let mut tests = 0;
    for name in table.split('`').skip(1).step_by(2).filter(|name| name.contains('_') && !name.contains(['/', ' '])) {
        tests += 1;
        assert!(sources.contains(&format!("fn {name}(")), "ARCHITECTURE.md names the test {name}, which is not there");
    }
    assert!(tests > 20, "only {tests} tests were found");
}

#[test]
fn the_readme_lists_every_error() {
    let readme = read(Path::new("README.md"));
    for row in proto::error::TABLE {
        let fault = format!("{:?}", row.fault).to_lowercase();
        let line = format!(
            "| `{}` | {} | {} | {} | {fault} | {} | {} |",
            row.name,
            row.code as i32,
            row.close_code,
            row.http_status,
            if row.retry { "yes" } else { "no" },
            row.meaning
        );
        assert!(readme.lines().any(|have| have == line), "README.md lacks the line\n{line}");
    }
}

#[test]
fn nothing_tracked_names_this_machine() {
    let home = std::env::var("HOME").unwrap_or_default();
    for path in tracked(&[".rs", ".ts", ".mjs", ".sh", ".toml", ".md", ".proto", ".yaml", ".json", "Makefile", "run"]) {
        let text = read(&path);
        for name in [home.as_str(), "index.crates.io", "registry.npmjs"] {
            // A home of "/" or none would be found everywhere.
            assert!(
                name.len() < 4 || path.ends_with("tidy.rs") || !text.contains(&format!("{name}/")),
                "{} names {name}",
                path.display()
            );
        }
    }
}

#[test]
fn make_help_lists_every_target() {
    let output = Command::new("make").arg("help").current_dir(root()).output().expect("make is installed");
    let help = String::from_utf8_lossy(&output.stdout);
    let mut targets = 0;
    for line in read(Path::new("Makefile")).lines() {
        let Some((target, _)) = line.split_once(':') else { continue };
        if !target.is_empty() && target.bytes().all(|b| b.is_ascii_lowercase() || b == b'.') && !target.starts_with('.')
        {
            targets += 1;
            assert!(help.lines().any(|line| line.split_whitespace().next() == Some(target)), "`{target}` has no line");
        }
    }
    assert!(targets >= 10, "only {targets} targets were found");
}
