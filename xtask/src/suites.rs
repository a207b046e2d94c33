//! The suites that need more than cargo.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::servers::{self, Persistence};
use crate::tools::{self, cargo, run};

/// The seed's Lambda, beside the checkout.
const SEED_LAMBDA: &str = "../shared/seed/lambda_function.py";

/// The scenarios of `tests/system.rs` with mosquitto on both sides and moto as the table.
pub(crate) fn brokers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let floor = servers::mosquitto(folder.path(), "floor", Persistence::OnDisk)?;
    let cloud = servers::mosquitto(folder.path(), "cloud", Persistence::OnDisk)?;
    let table = servers::moto()?;
    run(cargo()
        .args(["test", "--test", "system", "--", "--test-threads=1"])
        .env("FLOORGATE_TEST_FLOOR_BROKER", format!("127.0.0.1:{}", floor.port))
        .env("FLOORGATE_TEST_CLOUD_BROKER", format!("127.0.0.1:{}", cloud.port))
        .env("FLOORGATE_TEST_DYNAMODB", format!("http://127.0.0.1:{}", table.port)))
}

/// The seed's Lambda, unmodified, against the daemon's tables.
pub(crate) fn seed() -> Result<()> {
    let lambda = tools::root().join(SEED_LAMBDA);
    if !lambda.is_file() {
        bail!("the seed's Lambda is not at {SEED_LAMBDA}");
    }
    let python = tools::python("boto3", &["boto3==1.44.5"])?;
    run(cargo()
        .args(["test", "--features", "suites", "--test", "seed", "--", "--test-threads=1"])
        .env("FLOORGATE_TEST_PYTHON", python)
        .env("FLOORGATE_TEST_LAMBDA", lambda.canonicalize()?))
}

/// The floor endpoint with clients that nobody here wrote.
pub(crate) fn interop() -> Result<()> {
    for (program, package) in [("mosquitto_pub", "mosquitto-clients"), ("node", "nodejs"), ("npm", "npm")] {
        tools::need(program, package)?;
    }
    run(cargo().args(["build", "--example", "endpoint"]))?;
    let python = tools::python("paho", &["paho-mqtt==2.1.0"])?;
    let script = tools::root().join("tests/interop/run.py");
    run(Command::new(python).arg(script).arg(tools::target().join("debug/examples/endpoint")))
}

/// `kill -9` under load.
pub(crate) fn kills(count: u64) -> Result<()> {
    run(cargo().args(["test", "--test", "kills"]).env("FLOORGATE_TEST_KILLS", count.to_string()))
}

/// The fleet's tools over a table of 100,000 devices.
pub(crate) fn many() -> Result<()> {
    run(cargo().args([
        "test",
        "--package",
        "floorgate-fleet",
        "--test",
        "fleet",
        "many",
        "--",
        "--ignored",
        "--nocapture",
    ]))
}

/// The figures, measured on release binaries.
pub(crate) fn measure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let floor = servers::mosquitto(folder.path(), "floor", Persistence::InMemory)?;
    run(cargo().args(["build", "--release", "--bin", "floorgate"]))?;
    // One figure after the other, so that none pays for another.
    let test = |which: &[&str], filter: &str| {
        let mut test = cargo();
        test.args(["test", "--profile", "measure", "--features", "suites"]).args(which);
        test.args(["--", "--nocapture", "--test-threads=1", filter]);
        test.env("FLOORGATE_TEST_BINARY", tools::target().join("release/floorgate"));
        test.env("FLOORGATE_TEST_MOSQUITTO", format!("127.0.0.1:{}", floor.port));
        test
    };
    run(&mut test(&["--test", "measure"], ""))?;
    run(&mut test(&["--lib"], "measures::"))?;
    // What `cargo test` leaves out because it takes minutes.
    run(test(&["--test", "sync"], "history_drains").arg("--ignored"))?;
    run(test(&["--test", "isolation"], "of_five_hundred").arg("--ignored"))
}

/// What libFuzzer needs to see which way the code went; these flags are stable, unlike the sanitizers.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions";

/// Each payload parser under libFuzzer. An input that breaks one is kept under `fuzz/artifacts`.
pub(crate) fn fuzz(seconds: u64) -> Result<()> {
    tools::need("g++", "g++")?;
    let folder = tools::root().join("fuzz");
    let built = tools::target().join("fuzz");
    // Naming the target, even if it is this machine's, keeps the flags from build scripts and macros.
    let host = tools::host()?;
    run(cargo()
        .current_dir(&folder)
        .args(["build", "--release", "--locked", "--target", &host])
        .env("CARGO_TARGET_DIR", &built)
        .env("RUSTFLAGS", COVERAGE))?;
    let mut ran = 0;
    for name in ["telemetry", "report", "command"] {
        println!("fuzzing {name} for {seconds} s");
        let inputs = fuzz_one(&built.join(&host).join("release").join(name), &folder, name, seconds)?;
        println!("{name}: {inputs} inputs");
        ran += 1;
    }
    println!("{ran} passed, 0 failed");
    Ok(())
}

/// Runs one target; answers how many inputs it was given.
fn fuzz_one(program: &Path, folder: &Path, name: &str, seconds: u64) -> Result<u64> {
    let artifacts = folder.join("artifacts").join(name);
    std::fs::create_dir_all(&artifacts)?;
    let corpus = tempfile::tempdir()?;
    let limits = [format!("-max_total_time={seconds}"), "-max_len=20000".into(), "-rss_limit_mb=1024".into()];
    let mut fuzzer = Command::new(program);
    fuzzer.args(limits).args(["-timeout=10", "-print_final_stats=1", "-verbosity=0"]);
    fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
    // The first folder takes what is found; the seeds stay as they are.
    let output = fuzzer.arg(corpus.path()).arg(folder.join("seeds").join(name)).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{said}");
        bail!("fuzz target {name} ended with {}; its input is in {}", output.status, artifacts.display());
    }
    let executed = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    executed.and_then(|number| number.trim().parse().ok()).context("libFuzzer does not say how many inputs it tried")
}
