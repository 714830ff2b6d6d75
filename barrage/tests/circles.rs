//! No two files of a crate need each other: a file can be read after those that it names, and before those that name it.
//!
//! Looked at is each path that begins with `crate::`, `super::` or `self::` outside of comments and tests. A module and
//! the modules below it are one thing here: a `mod.rs` declares what its children use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module's path within its crate; empty: the crate's root.
type Module = Vec<String>;

/// Crates whose files are in order, by their sources.
const CRATES: &[&str] = &["connector/engine/src", "proto/src", "bench/src", "job/src"];

fn module_of(path: &Path) -> Module {
    let mut module: Module = path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib" || last == "main") {
        module.pop();
    }
    module
}

/// Without comments, and without the tests at the foot.
fn code_of(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules that are declared for tests only.
fn test_modules(module: &Module, text: &str) -> Vec<Module> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|two| two[0] == "#[cfg(test)]" || two[0].starts_with("#[cfg(any(test"))
        .filter_map(|two| {
            let name = two[1].trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?;
            Some(module.iter().cloned().chain([name.to_owned()]).collect())
        })
        .collect()
}

/// The paths of a `use` tree, or of a plain path, that begins at `rest`.
fn leaves(rest: &str, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    let mut at = 0;
    loop {
        let tail = &rest[at..];
        let name: String = tail.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !name.is_empty() {
            at += name.len();
            path.push(name);
            if rest[at..].starts_with("::") {
                at += 2;
                continue;
            }
        } else if tail.starts_with('{') {
            at += 1;
            loop {
                at += rest[at..].len() - rest[at..].trim_start_matches([' ', '\n', ',']).len();
                match rest[at..].chars().next() {
                    None => return at,
                    Some('}') => return at + 1,
                    Some(_) => {
                        let taken = leaves(&rest[at..], &path, found);
                        // What is no path (`as name`, a `*`) is passed over.
                        at += taken.max(1);
                    }
                }
            }
        }
        found.push(path);
        return at;
    }
}

/// Every path within the crate that `code` of `module` names, from the root.
fn paths(module: &Module, code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let mut rest = &code[at..];
            let mut base: Vec<String> = match start {
                "crate::" => Vec::new(),
                _ => module.clone(),
            };
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            rest = rest.strip_prefix("crate::").or_else(|| rest.strip_prefix("self::")).unwrap_or(rest);
            leaves(rest, &base, &mut found);
        }
    }
    found
}

/// Which modules each module names, without its own ancestors and descendants.
fn graph(files: &[(PathBuf, String)]) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut tests: BTreeSet<Module> = BTreeSet::new();
    for (path, text) in files {
        tests.extend(test_modules(&module_of(path), text));
    }
    let of_tests = |module: &Module| tests.iter().any(|test| module.starts_with(test));
    let modules: BTreeSet<Module> =
        files.iter().map(|(path, _)| module_of(path)).filter(|module| !of_tests(module)).collect();
    let mut graph = BTreeMap::new();
    for (path, text) in files {
        let module = module_of(path);
        if of_tests(&module) {
            continue;
        }
        let mut names = BTreeSet::new();
        for named in paths(&module, &code_of(text)) {
            let target = (1..=named.len()).rev().map(|length| named[..length].to_vec()).find(|it| modules.contains(it));
            if let Some(target) = target
                && !target.starts_with(&module)
                && !module.starts_with(&target)
            {
                names.insert(target);
            }
        }
        graph.insert(module, names);
    }
    graph
}

/// Modules that reach themselves, each group once, as `a, b`.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<String> {
    let reach = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = next.pop() {
            for named in graph.get(&module).into_iter().flatten() {
                if seen.insert(named.clone()) {
                    next.push(named.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&Module, BTreeSet<Module>> = graph.keys().map(|module| (module, reach(module))).collect();
    let mut found = BTreeSet::new();
    for (module, all) in &reached {
        if all.contains(*module) {
            let group = reached.iter().filter(|(other, theirs)| all.contains(**other) && theirs.contains(*module));
            found.insert(group.map(|(other, _)| other.join("::")).collect::<Vec<_>>().join(", "));
        }
    }
    found
}

fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let (mut files, mut next) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(folder) = next.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                next.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source is UTF-8");
                files.push((path.strip_prefix(directory).expect("it lies below").to_owned(), text));
            }
        }
    }
    files
}

#[test]
fn no_two_files_of_a_crate_need_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let mut all = Vec::new();
    for directory in CRATES {
        let files = sources(&root.join(directory));
        let graph = graph(&files);
        assert!(graph.values().map(BTreeSet::len).sum::<usize>() > 10, "{directory}: hardly any path is found");
        all.extend(circles(&graph).into_iter().map(|circle| format!("{directory}: {circle}")));
    }
    assert!(all.is_empty(), "files that need each other:\n{}", all.join("\n"));
}

#[test]
fn a_planted_circle_is_found() {
    let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
    let mut files = vec![
        file("lib.rs", "mod a;\nmod b;\nmod c;\n#[cfg(test)]\nmod scenarios;\nuse a::A;\n"),
        file("a.rs", "use std::fmt;\nuse super::{Root, b::{self, B}};\n"),
        file(
            "b.rs",
            "//! As crate::a.\nuse crate::c::C;\n// super::a\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n",
        ),
        file("c/mod.rs", "mod inner;\nfn f() -> inner::I { inner::I }\n"),
        file("c/inner.rs", "use super::C;\npub struct I;\n"),
        file("scenarios.rs", "use crate::a::A;\n"),
    ];
    let edges = graph(&files);
    assert_eq!(edges[&vec!["a".to_owned()]], [vec!["b".to_owned()]].into());
    assert_eq!(edges[&vec!["b".to_owned()]], [vec!["c".to_owned()]].into());
    assert!(circles(&edges).is_empty(), "{:?}", circles(&edges));
    files[4].1.push_str("fn g() { super::super::a::g(); }\n");
    let found = circles(&graph(&files));
    assert!(found.is_empty(), "a, b and c::inner: no circle, since c is not c::inner: {found:?}");
    files[3].1.push_str("use crate::{d, a::A as Other};\n");
    assert_eq!(circles(&graph(&files)), ["a, b, c".to_owned()].into());
}
