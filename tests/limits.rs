//! `docs/limits.md` names constants and tests; they have to exist.
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
