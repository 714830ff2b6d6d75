//! Docker gives what the scripts give: `compose.yaml`, `Dockerfile` and `config/compose.toml` against `scripts/`,
//! `config/dev.toml` and the shipped configuration. Docker itself is not run.

use std::collections::BTreeMap;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The scalars of a YAML file by their dotted keys, as far as compose.yaml uses YAML: mappings in block style, values on
/// one line, lists in brackets. A key's missing is the caller's to notice.
fn yaml(text: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut path: Vec<(usize, &str)> = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty()) {
        let indent = line.len() - line.trim_start().len();
        let (key, value) = line.trim().split_once(':').unwrap_or_else(|| panic!("not `key: value`: {line}"));
        path.retain(|(outer, _)| *outer < indent);
        path.push((indent, key));
        let value = value.trim();
        if !value.is_empty() {
            let dotted: Vec<&str> = path.iter().map(|(_, key)| *key).collect();
            let quoted_by = |quote| value.strip_prefix(quote).and_then(|value: &str| value.strip_suffix(quote));
            let unquoted = quoted_by('"').or_else(|| quoted_by('\''));
            assert_eq!(values.insert(dotted.join("."), unquoted.unwrap_or(value).to_owned()), None, "{dotted:?} twice");
        }
    }
    values
}

/// The strings of a list in brackets.
fn list(value: &str) -> Vec<String> {
    serde_json::from_str(value).unwrap_or_else(|error| panic!("{value}: {error}"))
}

/// `name=value` of a script, at the beginning of a line.
fn assigned<'a>(script: &'a str, name: &str) -> &'a str {
    let line = script.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = line.unwrap_or_else(|| panic!("no {name}= in the script"));
    value.split(" #").next().unwrap_or_default().trim_end()
}

#[test]
fn redis_has_the_scripts_version_settings_and_port() {
    let compose = yaml(&read("compose.yaml"));
    let script = read("scripts/redis.sh");
    assert_eq!(compose["services.redis.image"], format!("redis:{}", assigned(&script, "version")));
    let settings = assigned(&script, "settings").trim_matches(['(', ')']);
    let settings: Vec<&str> = settings.split(' ').map(|word| word.trim_matches('"')).collect();
    let command = list(&compose["services.redis.command"]);
    assert_eq!(command[0], "redis-server");
    assert_eq!(command[1..], settings);
    let port = read("scripts/services.sh");
    let port = assigned(&port, "redis_port");
    assert_eq!(list(&compose["services.redis.ports"]), [format!("127.0.0.1:{port}:{port}")]);
}

#[test]
fn kafka_has_the_scripts_version_settings_and_port() {
    let compose = yaml(&read("compose.yaml"));
    let script = read("scripts/kafka.sh");
    assert_eq!(compose["services.kafka.image"], format!("apache/kafka:{}", assigned(&script, "version")));
    let port = read("scripts/services.sh");
    let port = assigned(&port, "kafka_port");
    assert_eq!(list(&compose["services.kafka.ports"]), [format!("127.0.0.1:{port}:{port}")]);

    let properties = script.split("<<PROPERTIES\n").nth(1).and_then(|rest| rest.split("\nPROPERTIES").next());
    let mut compared = 0;
    for line in properties.expect("the script writes server.properties").lines() {
        let (name, value) = line.split_once('=').expect("a property a line");
        // Names, addresses and places are each one's own.
        let own = ["node.id", "listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"];
        if own.contains(&name) || name == "listener.security.protocol.map" {
            continue;
        }
        let variable = format!("services.kafka.environment.KAFKA_{}", name.to_uppercase().replace('.', "_"));
        let in_compose = compose.get(&variable).unwrap_or_else(|| panic!("compose.yaml has no {variable}"));
        assert_eq!(in_compose, &value.replace("$copies", "1"), "{name}");
        compared += 1;
    }
    assert!(compared >= 12, "only {compared} properties were found in the script");

    let java = script.split("\njava=(java ").nth(1).and_then(|rest| rest.split(" -cp").next());
    let mut java: Vec<&str> = java.expect("the script has JVM options").split_whitespace().collect();
    java.retain(|word| *word != "\\");
    let options = ["KAFKA_HEAP_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS"]
        .map(|name| compose[&format!("services.kafka.environment.{name}")].clone())
        .join(" ");
    assert_eq!(options.split(' ').collect::<Vec<_>>(), java);
}

#[test]
fn every_port_is_published_on_loopback_and_is_the_documented_one() {
    let compose = yaml(&read("compose.yaml"));
    let published: Vec<String> =
        compose.iter().filter(|(key, _)| key.ends_with(".ports")).flat_map(|(_, value)| list(value)).collect();
    let mut outside = Vec::new();
    for port in &published {
        let [address, outer, _inner] = port.split(':').collect::<Vec<_>>()[..] else { panic!("{port}") };
        assert_eq!(address, "127.0.0.1", "{port}");
        outside.push(outer.parse::<u16>().expect("a port is a number"));
    }
    outside.sort_unstable();
    // Jobs reach a connector's gRPC (3109) among the containers only.
    assert_eq!(outside, [3101, 3102, 3111, 3119, 3197, 3198, 3199, 6379, 9092]);
}

#[test]
fn the_containers_configuration_is_developments_but_for_addresses() {
    let table = |path| read(path).parse::<toml::Table>().unwrap_or_else(|error| panic!("{path}: {error}"));
    let (development, mut compose) = (table("config/dev.toml"), table("config/compose.toml"));
    let shipped = table("config/barrage.toml");
    // What compose.toml has beside it: where to listen and what to be called, all of it in keys that are shipped.
    for (section, keys) in [
        ("connector", &["listen", "advertised", "grpc", "grpc_advertised"][..]),
        ("logic", &["http", "grpc", "grpc_advertised"][..]),
    ] {
        let values = compose.get_mut(section).and_then(toml::Value::as_table_mut).expect("the section is there");
        for key in keys {
            assert!(values.remove(*key).is_some(), "{section}.{key}");
            let shipped = shipped.get(section).and_then(|section| section.get(key));
            assert!(shipped.is_some() || !shipped_has(section), "{section}.{key} is no key of barrage.toml");
        }
        if values.is_empty() {
            compose.remove(section);
        }
    }
    let set = |table: &mut toml::Table, section: &str, key: &str, value: &str| {
        let section = section.split('.').try_fold(table, |table, name| table.get_mut(name)?.as_table_mut());
        let value = toml::Value::Array(vec![value.into()]);
        *section.and_then(|section| section.get_mut(key)).unwrap_or_else(|| panic!("{key}")) = value;
    };
    set(&mut compose, "bus.kafka", "brokers", "127.0.0.1:9092");
    set(&mut compose, "routes", "urls", "redis://127.0.0.1:6379");
    assert_eq!(compose, development);
}

/// Whether the shipped configuration has the section.
fn shipped_has(section: &str) -> bool {
    read("config/barrage.toml").lines().any(|line| line == format!("[{section}]"))
}

/// Each service's environment in compose.yaml, with what `.env` would give.
fn environment(compose: &BTreeMap<String, String>, service: &str) -> Vec<(String, String)> {
    let prefix = format!("services.{service}.environment.");
    let secrets = [("BARRAGE_SECRET", "s".repeat(64)), ("BARRAGE_API_KEY", "k".repeat(64))];
    let own = compose.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
    own.map(|(name, value)| {
        let mut value = value.clone();
        for (secret, text) in &secrets {
            value = value.replace(&format!("${{{secret}:?see the top of compose.yaml}}"), text);
        }
        assert!(!value.contains('$'), "{name}: {value}");
        (name.to_owned(), value)
    })
    .collect()
}

#[test]
fn each_service_starts_on_its_configuration() {
    let compose = yaml(&read("compose.yaml"));
    for role in ["connector", "logic", "job"] {
        assert_eq!(list(&compose[&format!("services.{role}.command")]), [role]);
        let mut environment = environment(&compose, role);
        let file = environment.iter_mut().find(|(name, _)| name == "BARRAGE_CONFIG").expect("it names its file");
        let mounted = format!("./config/compose.toml:{}:ro", file.1);
        assert_eq!(list(&compose[&format!("services.{role}.volumes")]), [mounted]);
        file.1 = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/compose.toml").display().to_string();
        let check = |environment: &[(String, String)]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_barrage"));
            command.args(["config", "check", "--role", role]).envs(environment.iter().cloned());
            command.output().expect("the binary is built")
        };
        let output = check(&environment);
        assert!(output.status.success(), "{role}: {}", String::from_utf8_lossy(&output.stderr));
        // Not because nothing is looked at.
        environment.retain(|(name, _)| name != "BARRAGE_CLUSTER__SECRET");
        assert!(!check(&environment).status.success(), "{role} starts without a secret");
    }
}

#[test]
fn the_image_is_not_roots_and_asks_for_its_health() {
    let dockerfile = read("Dockerfile");
    let last = dockerfile.rsplit("\nFROM ").next().unwrap_or_default();
    assert!(last.lines().any(|line| line == "USER 10001"));
    assert!(last.contains("\nHEALTHCHECK ") && last.contains("/ready"));
    let toolchain = read("Cargo.toml").parse::<toml::Table>().expect("Cargo.toml is TOML");
    let rust = toolchain["workspace"]["package"]["rust-version"].as_str().expect("a version is text").to_owned();
    assert!(dockerfile.contains(&format!("\nFROM rust:{rust}-bookworm AS build\n")), "another Rust than {rust}");
}
