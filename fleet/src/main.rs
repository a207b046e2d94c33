//! `floorgate-fleet`: the doors to the fleet's tools.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "floorgate-fleet", version, about = "The doors to the fleet's tools")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Print the tools with their schemas, as JSON.
    Schema {
        /// As `toolSchema.inlinePayload` of an AgentCore Lambda target.
        #[arg(long)]
        agentcore: bool,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().task {
        Task::Schema { agentcore: true } => println!("{:#}", floorgate_fleet::tools::agentcore()),
        Task::Schema { agentcore: false } => {
            let tools = serde_json::to_value(floorgate_fleet::tools::definitions()).unwrap_or_default();
            println!("{tools:#}");
        }
    }
    ExitCode::SUCCESS
}
