//! `cargo xtask fleet`: the fleet's MCP server with an OpenID provider, another SDK's client and the official conformance suite;
//! behind it a broker, the real daemon and the demo's devices, so that a command really goes all the way and back.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::servers::{self, Persistence};
use crate::tools::{self, cargo, run, target};

/// What npm installs. The suite needs a newer Node than some distributions have, so that comes from there as well.
const NPM: [&str; 4] =
    ["@modelcontextprotocol/conformance@0.2.0-alpha.12", "oidc-provider@9.13.3", "node@22.23.3", "jsdom@31.0.1"];
const PYPI: [&str; 2] = ["mcp==2.3.0", "boto3==1.44.5"];

/// Installs what is missing under the target folder, and runs `fleet/suite/run.py`.
pub(crate) fn suite() -> Result<()> {
    let modules = npm()?;
    let python = tools::python("fleet", &PYPI)?;
    run(cargo().args(["build", "--package", "floorgate", "--bin", "floorgate"]))?;
    run(cargo().args(["build", "--package", "floorgate-fleet", "--bin", "floorgate-fleet", "--example", "floor"]))?;
    let folder = tempfile::tempdir()?;
    let broker = servers::mosquitto(folder.path(), "cloud", Persistence::InMemory)?;
    let table = servers::moto()?;
    let mut suite = Command::new(python);
    suite.arg(tools::root().join("fleet/suite/run.py")).arg(target().join("debug/floorgate-fleet"));
    suite.arg(modules.join("node/bin/node")).arg(&modules).arg(format!("http://127.0.0.1:{}", table.port));
    suite.arg(target().join("fleet-suite/results")).arg(target().join("debug/examples/floor"));
    suite.arg(format!("127.0.0.1:{}", broker.port)).env("FLOORGATE_BIN", target().join("debug/floorgate"));
    run(&mut suite)
}

fn npm() -> Result<PathBuf> {
    tools::need("npm", "npm")?;
    let folder = target().join("fleet-suite");
    let done = folder.join("installed");
    if !std::fs::read_to_string(&done).is_ok_and(|text| text == NPM.join(" ")) {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("package.json"), "{\"private\":true}")?;
        run(Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--loglevel=error"])
            .args(NPM)
            .current_dir(&folder))?;
        std::fs::write(&done, NPM.join(" "))?;
    }
    Ok(folder.join("node_modules"))
}
