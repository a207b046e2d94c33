//! What can be typed after `cargo demo`.

use std::net::SocketAddr;
use std::path::PathBuf;

const HELP: &str = "\
The whole of floorgate on one machine: five simulated devices, the daemon, a stand-in for the cloud's broker,
an embedded DynamoDB-compatible store, and the tools as an MCP server. Eight short acts, played by agents with an
operator's and a senior operator's token, show what it does; each checks itself. Any MCP client can join: how, is
said at the start.

Usage: cargo demo [OPTIONS]

  --headless             plain lines instead of a live table; the exit code is 1 if an act does not end as it should
  --keep                 leave everything running after the acts and say how to watch it; Ctrl-C ends it
  --dir DIR              keep configuration, state and logs in DIR (default: a temporary directory)
  --floor-broker ADDR    a running MQTT broker (127.0.0.1:1883) instead of the daemon's built-in floor endpoint
  --cloud-broker ADDR    a running MQTT broker instead of the stand-in
  --table ADDR           a running DynamoDB-compatible store instead of the embedded one
  --help                 this text
";

/// The options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) headless: bool,
    pub(crate) keep: bool,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) floor_broker: Option<SocketAddr>,
    pub(crate) cloud_broker: Option<SocketAddr>,
    pub(crate) table: Option<SocketAddr>,
}

impl Options {
    /// Reads them; `None` if only help was wanted, which is printed.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--headless" => options.headless = true,
                "--keep" => options.keep = true,
                "--dir" => options.dir = Some(value()?.into()),
                "--floor-broker" => options.floor_broker = Some(address(&value()?)?),
                "--cloud-broker" => options.cloud_broker = Some(address(&value()?)?),
                "--table" => options.table = Some(address(&value()?)?),
                "--help" | "-h" => {
                    println!("{HELP}");
                    return Ok(None);
                }
                other => return Err(format!("`{other}` is not an option")),
            }
        }
        Ok(Some(options))
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let bare = text.trim_start_matches("mqtt://").trim_start_matches("http://").trim_end_matches('/');
    bare.replace("localhost", "127.0.0.1").parse().map_err(|_| format!("`{text}` is no ADDRESS:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read_and_anything_else_is_named() {
        let options = parse("--headless --table http://localhost:8000/ --dir x").unwrap().unwrap();
        assert!(options.headless && !options.keep);
        assert_eq!(options.table.unwrap().port(), 8000);
        assert_eq!(parse("--hedless").unwrap_err(), "`--hedless` is not an option");
        assert_eq!(parse("--dir").unwrap_err(), "--dir needs a value");
        assert!(parse("--table x").is_err());
    }
}
