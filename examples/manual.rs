//! Writes what a package has beside the program: manual pages and shell completions, from the definition of the command
//! line, and floorgate.toml(5), from `docs/configuration.md`, where every key is described.
//!
//! `cargo run --example manual -- FOLDER`; `cargo xtask deb` does so. Not a part of the daemon's binary.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, line_break, roman};

/// Administrators' commands.
const SECTION: &str = "8";
const MANUAL: &str = "floorgate manual";
/// Where every key is described.
const KEYS: &str = include_str!("../docs/configuration.md");

/// What the command line's definition does not say.
const MORE: &[(&str, &[(&str, &str)])] = &[
    (
        "EXIT STATUS",
        &[
            ("0", "Done; for send: the command succeeded."),
            ("1", "It failed: no daemon, a refused query, a command that did not succeed."),
            ("64", "The arguments cannot be understood."),
            (
                "78",
                "The configuration cannot be used; every problem is told, with file and line. Or a newer floorgate wrote the state.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/floorgate/floorgate.toml", "The configuration; conf.d, devices.d and profiles.d beside it."),
            ("/var/lib/floorgate", "The state: the store, its backups, the socket by which the command line asks."),
            ("/run/floorgate", "The socket while the disk takes no new file; how often the service failed in a row."),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGHUP",
                "Read the configuration again, as floorgate reload; devices and profiles count at once, or nothing changes.",
            ),
            ("SIGTERM", "Stop in order within 5 s."),
        ],
    ),
    (
        "ENVIRONMENT",
        &[
            ("FLOORGATE_LOG", "What to log, as --log-level."),
            ("STATE_DIRECTORY", "Where the state is, unless the configuration says; systemd sets it."),
            ("AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID, …", "As floorgate.toml(5) says under AWS CREDENTIALS."),
        ],
    ),
];

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).context("usage: manual FOLDER")?;
    write_pages(&folder.join("man"))?;
    write_completions(&folder.join("completions"))
}

/// One page for the program and one for each of its tasks, and one for its file.
fn write_pages(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut command = floorgate::cli::command().disable_help_subcommand(true);
    command.build();
    let page = |name: &str, command: &clap::Command| -> Result<Vec<u8>> {
        let mut page = Vec::new();
        let command = command.clone().version(env!("CARGO_PKG_VERSION"));
        Man::new(command).title(name).section(SECTION).manual(MANUAL).render(&mut page)?;
        Ok(page)
    };
    let mut main = page("floorgate", &command)?;
    let mut more = Roff::new();
    for (heading, entries) in MORE {
        more.control("SH", [*heading]);
        for (name, text) in *entries {
            tagged(&mut more, &[bold(*name)], &[roman(*text)]);
        }
    }
    more.control("SH", ["SEE ALSO"]);
    let others = command.get_subcommands().map(|one| format!("floorgate-{}({SECTION})", one.get_name()));
    let others: Vec<_> = others.chain(["floorgate.toml(5)".to_owned()]).collect();
    more.text([roman(others.join(", "))]);
    main.extend(more.to_roff().into_bytes());
    save(folder, &format!("floorgate.{SECTION}"), &main)?;
    for task in command.get_subcommands() {
        let name = format!("floorgate-{}", task.get_name());
        save(folder, &format!("{name}.{SECTION}"), &page(&name, task)?)?;
    }
    save(folder, "floorgate.toml.5", configuration(KEYS)?.as_bytes())
}

fn save(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    let file = std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes));
    file.with_context(|| format!("cannot write {}", path.display()))
}

/// Under the names by which each shell finds them.
fn write_completions(folder: &Path) -> Result<()> {
    for (shell, name) in [(Shell::Bash, "floorgate"), (Shell::Zsh, "_floorgate"), (Shell::Fish, "floorgate.fish")] {
        let place = folder.join(shell.to_string());
        std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut floorgate::cli::command(), "floorgate", &mut script);
        save(&place, name, &script)?;
    }
    Ok(())
}

/// The page of the file: headings become sections, rows of tables become entries, links become their words.
fn configuration(text: &str) -> Result<String> {
    let mut page = Roff::new();
    page.control("TH", ["floorgate.toml", "5", "", concat!("floorgate ", env!("CARGO_PKG_VERSION")), MANUAL]);
    page.control("SH", ["NAME"]);
    page.text([roman("floorgate.toml - configuration of the edge gateway floorgate")]);
    page.control("SH", ["DESCRIPTION"]);
    let mut keys = 0;
    let mut paragraph = Vec::new();
    for line in text.lines().skip_while(|line| !line.is_empty()) {
        let row = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |"));
        if row.is_none() && !line.starts_with('|') && !line.is_empty() && !line.starts_with("## ") {
            paragraph.extend(inlines(line));
            paragraph.push(roman(" "));
            continue;
        }
        if !paragraph.is_empty() {
            page.control("PP", [] as [&str; 0]).text(std::mem::take(&mut paragraph));
        }
        if let Some(heading) = line.strip_prefix("## ") {
            page.control("SH", [heading.replace('`', "").to_uppercase().as_str()]);
        } else if let Some(row) = row {
            // The names of the columns.
            if row.starts_with("key |") || row.starts_with("files |") {
                continue;
            }
            keys += 1;
            entry(&mut page, &row.split(" | ").map(str::trim).collect::<Vec<_>>())?;
        }
    }
    if !paragraph.is_empty() {
        page.control("PP", [] as [&str; 0]).text(paragraph);
    }
    ensure!(keys > 40, "docs/configuration.md has only {keys} keys that could be read");
    page.control("SH", ["SEE ALSO"]);
    page.text([roman(format!("floorgate({SECTION})"))]);
    Ok(page.to_roff())
}

/// `key | type | default | meaning`, or `files | what they may hold`.
fn entry(page: &mut Roff, cells: &[&str]) -> Result<()> {
    match cells {
        [name, meaning] => tagged(page, &inlines(name), &inlines(meaning)),
        [name, kind, default, meaning] => {
            let mut text = inlines(meaning);
            if !kind.is_empty() {
                text.push(line_break());
                text.extend(inlines(&format!("Type: {kind}. Default: {default}.")));
            }
            tagged(page, &inlines(name), &text);
        }
        other => anyhow::bail!("docs/configuration.md has a row of {} cells: {other:?}", other.len()),
    }
    Ok(())
}

fn tagged(page: &mut Roff, tag: &[Inline], text: &[Inline]) {
    page.control("TP", [] as [&str; 0]);
    page.text(tag);
    page.text(text);
}

/// Code is bold; of a link its words stay.
fn inlines(text: &str) -> Vec<Inline> {
    let parts = without_links(text);
    let parts = parts.split('`').enumerate().filter(|(_, part)| !part.is_empty());
    parts.map(|(n, part)| if n % 2 == 1 { bold(part) } else { roman(part) }).collect()
}

fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    // `[` also begins a section's name in code, so only what ends like a link is one.
    while let Some((before, words, after)) = next_link(rest) {
        out.push_str(before);
        out.push_str(words);
        rest = after;
    }
    out.push_str(rest);
    out
}

fn next_link(text: &str) -> Option<(&str, &str, &str)> {
    let middle = text.find("](")?;
    let open = text[..middle].rfind('[')?;
    let close = middle + text[middle..].find(')')?;
    Some((&text[..open], &text[open + 1..middle], &text[close + 1..]))
}
