//! Chores that change nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::tools::{self, cargo, run};

/// cargo-deny with `deny.toml`; advisories only where their database is at hand.
pub(crate) fn deny() -> Result<()> {
    if !tools::is_there("cargo-deny") {
        run(cargo().args(["install", "--locked", "cargo-deny@0.20.2"]))?;
    }
    run(cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]))
}

/// Lines of code and of tests for each module, blank lines and comments left out.
pub(crate) fn lines() -> Result<()> {
    let root = tools::root();
    let mut modules: BTreeMap<String, (usize, usize, usize)> = BTreeMap::new();
    for folder in ["src", "model/src", "demo/src", "demo/table/src", "xtask/src", "tests"] {
        for file in rust_files(&root.join(folder))? {
            let (code, tests) = count(&std::fs::read_to_string(&file)?);
            let inside = file.strip_prefix(root.join(folder))?;
            let first = inside.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned());
            let name = format!("{folder}/{}", first.unwrap_or_default());
            let entry = modules.entry(name).or_default();
            let in_tests = inside.components().any(|part| part.as_os_str() == "tests");
            let named = file.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
            let all_tests = folder == "tests" || in_tests || named;
            *entry = (
                entry.0 + 1,
                entry.1 + if all_tests { 0 } else { code },
                entry.2 + tests + if all_tests { code } else { 0 },
            );
        }
    }
    println!("{:<28} {:>5} {:>7} {:>7}", "module", "files", "code", "tests");
    let mut total = (0, 0, 0);
    for (name, (files, code, tests)) in &modules {
        println!("{name:<28} {files:>5} {code:>7} {tests:>7}");
        total = (total.0 + files, total.1 + code, total.2 + tests);
    }
    println!("{:<28} {:>5} {:>7} {:>7}", "all", total.0, total.1, total.2);
    Ok(())
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn count(text: &str) -> (usize, usize) {
    let counts = |part: &str| part.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("//")).count();
    match text.split_once("#[cfg(test)]\nmod tests {") {
        Some((code, tests)) => (counts(code), counts(tests)),
        None => (counts(text), 0),
    }
}
