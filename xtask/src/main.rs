//! The heavier suites and chores: `cargo xtask NAME`. Each installs what it needs, or says what is missing.

mod aws;
mod board;
mod chores;
mod cross;
mod disk;
mod emulated;
mod faults;
mod fleet;
mod lambda;
mod package;
mod platform;
mod servers;
mod suites;
mod tools;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask NAME [options]

  brokers               the system's scenarios with mosquitto as both brokers and moto as the table
  seed                  the seed's Lambda, unmodified, against the daemon's tables
  interop               the floor endpoint with paho, mosquitto_pub/sub and MQTT.js
  kills [--count N]     kill -9 under load N times (default 50), then check that nothing acknowledged is lost
  disk                  a full and a read-only disk under the daemon, with a small file system of its own (root)
  faults [--minutes N] [--seed S] [--only NAME] [--matrix FILE] [--after-tests]
                        every fault under load, judged from outside (default 10 minutes), then the suites that inject
                        faults from inside; writes docs/fault-matrix.md. --after-tests leaves out what a plain
                        `cargo test` runs too
  fleet                 the fleet's MCP server with an OpenID provider, another SDK's client and the official conformance
                        suite
  many                  the fleet's tools over a table of 100,000 devices
  fuzz [--seconds N]    each payload parser under libFuzzer for N seconds (default 20)
  measure               the figures of the README, each beside its peer in one run
  vm [--arch arm64|amd64] [--suite bookworm|trixie] [--nspawn] [--cuts N] [--package FILE] [--seed S] [--image-only] [--no-flush]
                        the board test: Debian with systemd in an emulated ARM machine (default) or a container, the package
                        installed as a user would, power cuts under load (default 5; a release: 300); wants root.
                        --no-flush swallows the daemon's flushes and wants the judge to find that
  aws [--write]         the AWS template against its sources, cfn-lint and AWS's own models; --write renews what is generated
  cross TARGET          the release binary for aarch64-unknown-linux-gnu or armv7-unknown-linux-gnueabihf
  lambda                floorgate-fleet for AWS Lambda on arm64, zipped, checked, and run under qemu with a played Runtime API
  deb ARCHITECTURE      the Debian package for amd64, arm64 or armhf, checked
  reproducible TARGET   the release binary built twice, in two folders: the same bytes
  emulated [--no-run] [TARGET…]
                        the unit tests and the demo's scenarios as ARM programs under qemu; --no-run only builds them
  deny                  licences, sources, banned crates and advisories (cargo-deny)
  lines                 lines of code and of tests for each module
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(64);
    };
    let number = |option: &str, default: u64| match rest {
        [] => Ok(default),
        [o, n] if o == option => n.parse().map_err(|_| anyhow::anyhow!("{option} wants a number, not {n:?}")),
        _ => Err(anyhow::anyhow!("{name} takes {option} N alone")),
    };
    let one = |what: &str| match rest {
        [only] => Ok(only.as_str()),
        _ => Err(anyhow::anyhow!("{name} takes one {what}")),
    };
    let result = match name.as_str() {
        "brokers" => suites::brokers(),
        "seed" => suites::seed(),
        "interop" => suites::interop(),
        "kills" => number("--count", 50).and_then(suites::kills),
        "disk" => disk::suite(),
        "faults" => faults::Asked::parse(rest).and_then(|asked| faults::faults(&asked)),
        "fuzz" => number("--seconds", 20).and_then(suites::fuzz),
        "fleet" => fleet::suite(),
        "many" => suites::many(),
        "measure" => suites::measure(),
        "vm" => board::Asked::parse(rest).and_then(|asked| board::vm(&asked)),
        "aws" => match rest {
            [] => aws::aws(false),
            [option] if option == "--write" => aws::aws(true),
            _ => Err(anyhow::anyhow!("aws takes --write alone")),
        },
        "cross" => one("TARGET").and_then(cross::cross),
        "lambda" => lambda::lambda(),
        "deb" => one("ARCHITECTURE").and_then(package::deb),
        "reproducible" => one("TARGET").and_then(cross::reproducible),
        "emulated" => emulated::Asked::parse(rest).and_then(|asked| emulated::emulated(&asked)),
        "deny" => chores::deny(),
        "lines" => chores::lines(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask {name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
