//! The flags of `floorgate-fleet serve`. Each has an environment variable, for a container.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{Keys, ServeConfig, ServeError, fetch};
use crate::identity::{Identity, KeyCache, Now, Rules};

/// Whose tokens count, and where the keys to them are.
#[derive(Debug, Clone, Args)]
pub struct TokenArguments {
    /// Who issues the tokens, to the letter as they say it: https://cognito-idp.REGION.amazonaws.com/POOL
    #[arg(long, env = "FLOORGATE_ISSUER")]
    issuer: String,
    /// An audience that a token may name; by default the server's address
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
}

impl TokenArguments {
    /// Without the empty word that an empty variable is.
    fn filled(mut self) -> Self {
        self.audiences.retain(|word| !word.is_empty());
        self.client_ids.retain(|word| !word.is_empty());
        self
    }

    fn keys(&self) -> Keys {
        match (&self.jwks_file, &self.jwks_url) {
            (Some(path), _) => Keys::File(path.clone()),
            (None, Some(address)) => Keys::Address(address.clone()),
            (None, None) => Keys::Discovery,
        }
    }

    fn rules(self) -> Rules {
        let Self { issuer, audiences, client_ids, groups_claim, .. } = self.filled();
        Rules { issuer, audiences, client_ids, any_audience: false, groups_claim }
    }

    /// Checks tokens as these flags say. The issuer is asked at the first token.
    ///
    /// # Errors
    /// [`ServeError::Config`] if they cannot be, or no token could ever count.
    pub fn identity(self, now: Now) -> Result<Identity, ServeError> {
        let filled = self.filled();
        filled.checked(now)
    }

    fn checked(self, now: Now) -> Result<Identity, ServeError> {
        if self.audiences.is_empty() && self.client_ids.is_empty() {
            let text = "neither an audience nor a client id is given (FLOORGATE_AUDIENCES, FLOORGATE_CLIENT_IDS); \
                        no token could count";
            return Err(ServeError::Config(text.to_owned()));
        }
        let keys = KeyCache::new(Box::new(fetch(&self.keys(), &self.issuer, self.issuer_ca.as_ref())?));
        // Behind a gateway that judged for whom the token is; its own address is not known before it is there.
        let any_audience = self.audiences.is_empty();
        Ok(Identity::new(Rules { any_audience, ..self.rules() }, Arc::new(keys), now))
    }
}

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
    /// Whose tokens count
    #[command(flatten)]
    tokens: TokenArguments,
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
        Self {
            listen: given.listen,
            url: given.url,
            tls: given.tls_cert.zip(given.tls_key),
            keys: given.tokens.keys(),
            issuer_ca: given.tokens.issuer_ca.clone(),
            rules: given.tokens.rules(),
            read_scope: some(given.read_scope),
            command_scope: some(given.command_scope),
            allowed_origins: given.allowed_origins.into_iter().filter(|origin| !origin.is_empty()).collect(),
            policies: given.policies,
            gateway_arn: given.gateway_arn,
        }
    }
}
