//! The flags of `floorgate-fleet serve`. Each has an environment variable, for a container.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::{Keys, ServeConfig};
use crate::identity::Rules;

/// Flags of `floorgate-fleet serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArguments {
    /// Where to listen; without a certificate only on loopback
    #[arg(long, env = "FLOORGATE_LISTEN", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// The address clients use, https://fleet.example/mcp
    #[arg(long, env = "FLOORGATE_URL")]
    url: Option<String>,
    /// Certificate chain, PEM
    #[arg(long, env = "FLOORGATE_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, env = "FLOORGATE_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Who issues the tokens, to the letter as they say it: https://cognito-idp.REGION.amazonaws.com/POOL
    #[arg(long, env = "FLOORGATE_ISSUER")]
    issuer: String,
    /// An audience that a token may name; by default, without any client id, the server's address
    #[arg(long = "audience", env = "FLOORGATE_AUDIENCES", value_delimiter = ',')]
    audiences: Vec<String>,
    /// A client whose tokens count; required for Cognito, whose access tokens name no audience
    #[arg(long = "client-id", env = "FLOORGATE_CLIENT_IDS", value_delimiter = ',')]
    client_ids: Vec<String>,
    /// The claim with the operator's groups
    #[arg(long, env = "FLOORGATE_GROUPS_CLAIM", default_value = "cognito:groups")]
    groups_claim: String,
    /// Where the issuer's keys are, instead of asking its discovery document
    #[arg(long, env = "FLOORGATE_JWKS_URL", conflicts_with = "jwks_file")]
    jwks_url: Option<String>,
    /// A file with the issuer's keys, for a plant without a way to its issuer
    #[arg(long, env = "FLOORGATE_JWKS_FILE")]
    jwks_file: Option<PathBuf>,
    /// Certificates to trust for the issuer instead of the system's, PEM
    #[arg(long, env = "FLOORGATE_ISSUER_CA")]
    issuer_ca: Option<PathBuf>,
    /// The scope every request needs; empty for none
    #[arg(long, env = "FLOORGATE_READ_SCOPE", default_value = "iot/read")]
    read_scope: String,
    /// The scope send_command needs; empty for none
    #[arg(long, env = "FLOORGATE_COMMAND_SCOPE", default_value = "iot/command")]
    command_scope: String,
    /// A web page's origin that may call, https://console.example
    #[arg(long = "allow-origin", env = "FLOORGATE_ALLOW_ORIGINS", value_delimiter = ',')]
    allowed_origins: Vec<String>,
    /// Folder with *.cedar, instead of the policies that are built in
    #[arg(long, env = "FLOORGATE_POLICIES")]
    policies: Option<PathBuf>,
    /// What ${GatewayArn} in the policies stands for
    #[arg(
        long,
        env = "FLOORGATE_GATEWAY_ARN",
        default_value = "arn:aws:bedrock-agentcore:local:000000000000:gateway/floorgate"
    )]
    gateway_arn: String,
}

impl From<ServeArguments> for ServeConfig {
    fn from(given: ServeArguments) -> Self {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let keys = match (given.jwks_file, given.jwks_url) {
            (Some(path), _) => Keys::File(path),
            (None, Some(address)) => Keys::Address(address),
            (None, None) => Keys::Discovery,
        };
        Self {
            listen: given.listen,
            url: given.url,
            tls: given.tls_cert.zip(given.tls_key),
            rules: Rules {
                issuer: given.issuer,
                audiences: given.audiences,
                client_ids: given.client_ids,
                groups_claim: given.groups_claim,
            },
            keys,
            issuer_ca: given.issuer_ca,
            read_scope: some(given.read_scope),
            command_scope: some(given.command_scope),
            allowed_origins: given.allowed_origins,
            policies: given.policies,
            gateway_arn: given.gateway_arn,
        }
    }
}
