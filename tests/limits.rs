//! `docs/limits.md` names constants and tests; they have to exist. And it names every bound: each `…_MAX` of the source.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::Path;

/// Texts between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn sources(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// Bounds of SQL texts, not of anything a user meets.
const NO_LIMITS: [(&str, &str); 2] =
    [("src/shadow/telemetry/open_block.rs", "TTL_MAX"), ("src/shadow/telemetry/open_block.rs", "COUNT_MAX")];

/// (file, constant) of each bound in a folder's own source; what tests alone are built with is none.
fn bounds(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            bounds(root, &path, found);
        }
        if path.extension().is_none_or(|e| e != "rs") || name.ends_with("tests") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let own = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for line in own.lines() {
            let Some((before, rest)) = line.split_once("const ") else { continue };
            let declares = before.is_empty() || (before.starts_with("pub") && before.ends_with(' '));
            let Some((constant, _)) = rest.split_once(": ").filter(|_| declares) else { continue };
            if constant.ends_with("_MAX") {
                let file = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                found.push((file, constant.to_owned()));
            }
        }
    }
}

#[test]
fn every_bound_of_the_source_is_in_the_limits() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/limits.md")).unwrap();
    let mut found = Vec::new();
    for folder in ["src", "model/src"] {
        bounds(root, &root.join(folder), &mut found);
    }
    assert!(found.len() > 80, "only {} bounds were found", found.len());
    found.retain(|(file, constant)| {
        !document.contains(&format!("`{file}` `{constant}`"))
            && !NO_LIMITS.contains(&(file.as_str(), constant.as_str()))
    });
    assert!(found.is_empty(), "not in docs/limits.md: {found:#?}");
}

#[test]
fn every_constant_and_every_test_of_the_limits_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("docs/limits.md")).unwrap();
    let mut code = String::new();
    for folder in ["src", "model/src", "tests", "fleet/src", "fleet/tests"] {
        sources(&root.join(folder), &mut code);
    }
    let mut wrong = Vec::new();
    let mut rows = 0;
    for line in document.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
        let [what, _, _, constant, test] = cells[..] else { continue };
        let [path, name] = quoted(constant)[..] else { continue };
        rows += 1;
        let text = fs::read_to_string(root.join(path)).unwrap_or_default();
        if !text.contains(&format!("const {name}: ")) {
            wrong.push(format!("{what}: no constant {name} in {path}"));
        }
        match quoted(test)[..] {
            [] if test.trim() == "–" => {}
            [target] if test.contains("fuzz target") => {
                if !root.join("fuzz/targets").join(target).with_extension("rs").is_file() {
                    wrong.push(format!("{what}: no fuzz target {target}"));
                }
            }
            [name] if code.contains(&format!("fn {name}(")) => {}
            _ => wrong.push(format!("{what}: no test {test}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rows > 60, "only {rows} rows were read");
}
