//! `cargo xtask aws`: the template of `deploy/aws`, checked without AWS.
//!
//! 1. Its generated sections say what their sources say: the tools' schemas (`floorgate-fleet schema --agentcore`), the
//!    Cedar policies (`fleet/policies`), the policies of a gateway's certificate and role (`docs/operations.md`).
//!    `--write` renews them.
//! 2. cfn-lint has nothing to say against it.
//! 3. Its properties are parameters that AWS's own models take, and what its policies allow is what the programs need
//!    (`tests/aws/check.py`).
//!
//! Nothing here asks AWS: that a stack really comes up of it was never seen.

mod sections;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tools::{self, cargo, run};

/// Pinned, because a newer one knows newer shapes: what passes today has to pass tomorrow.
const PACKAGES: [&str; 3] = ["cfn-lint==1.58.0", "botocore==1.44.5", "moto[dynamodb]==5.2.5"];

/// Checks the template; with `write`, first renews what is generated of it.
///
/// # Errors
/// If a section is not what its source says, or a check finds something.
pub(crate) fn aws(write: bool) -> Result<()> {
    let root = tools::root();
    let file = root.join("deploy/aws/template.yaml");
    let stands = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut renewed = stands.clone();
    let mut sources = sections::of_files(&root)?;
    sources.push(sections::of_tools(&tools()?));
    for section in &sources {
        renewed = section.put_into(&renewed)?;
    }
    if write {
        std::fs::write(&file, &renewed).with_context(|| format!("cannot write {}", file.display()))?;
    } else if renewed != stands {
        let stale: Vec<_> = sources.iter().filter(|section| !section.stands_in(&stands)).map(|s| s.name).collect();
        bail!("not what their sources say: {}; renew them with `cargo xtask aws --write`", stale.join(", "));
    }
    println!("{} generated sections are what their sources say", sources.len());
    let python = tools::python("aws", &PACKAGES)?;
    lint(&python, &file)?;
    run(Command::new(&python).arg(root.join("tests/aws/check.py")).arg(&file))
}

/// The tools as their definition has them, asked of the program.
fn tools() -> Result<Value> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "floorgate-fleet", "--", "schema", "--agentcore"]);
    let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`floorgate-fleet schema --agentcore` ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("`floorgate-fleet schema --agentcore` printed no JSON")
}

/// Warnings count: a rule that is not meant is switched off in the template, with its reason.
fn lint(python: &Path, file: &Path) -> Result<()> {
    // One region: those that have AgentCore differ in nothing else here, and all of them would take a minute.
    let options = ["--non-zero-exit-code", "warning", "--regions", "us-east-1", "--template"];
    run(Command::new(python.with_file_name("cfn-lint")).args(options).arg(file))?;
    println!("cfn-lint has nothing to say");
    Ok(())
}
