//! `[dynamodb]`: the tables, and who we are there.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::files::Folder;
use super::link::host_and_port;
use super::section::Section;
use super::tree::Node;
use super::types::{AwsKeys, CloudConfig, CredentialsConfig, DynamoConfig, IotRoleConfig, Secret};
use crate::sync::credentials::shared_access_key;

pub(super) fn dynamodb(
    root: &Section<'_>,
    folder: &Folder,
    cloud: Option<&CloudConfig>,
    environment: &Environment,
) -> Option<DynamoConfig> {
    let section = root.optional_section("dynamodb")?;
    let region = region(&section, environment);
    let endpoint_url = section.parsed("endpoint_url", |text| endpoint_url(text).map(|()| text.to_owned()));
    let endpoint_fits = endpoint_url.is_some() || !section.has("endpoint_url");
    let devices = table(&section, "devices_table", "iot-devices");
    let history = table(&section, "history_table", "iot-telemetry-history");
    let commands = optional_table(&section, "commands_table", "iot-commands");
    let credentials = match section.optional_section("credentials") {
        Some(inner) => iot_role(inner, folder, cloud).map(CredentialsConfig::IotRole),
        None => keys(&section, environment),
    };
    section.finish();
    let config = DynamoConfig {
        region: region?,
        endpoint_url,
        devices_table: devices?,
        history_table: history?,
        commands_table: commands?,
        credentials: credentials?,
    };
    endpoint_fits.then_some(config)
}

fn region(section: &Section<'_>, environment: &Environment) -> Option<String> {
    if !section.has("region") {
        if let Some(region) = environment.get("AWS_REGION") {
            return Some(region.to_owned());
        }
        section.missing("region", "the AWS region of the tables, such as \"us-east-1\" (or set AWS_REGION)");
    }
    section.parsed("region", |text| {
        let fits = text.len() <= 32 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits { Ok(text.to_owned()) } else { Err("must be an AWS region, such as \"us-east-1\"") }
    })
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (3..=255).contains(&name.len()) && name.bytes().all(allowed)
}

/// A table's name.
fn table(section: &Section<'_>, key: &'static str, standard: &str) -> Option<String> {
    if !section.has(key) {
        return Some(standard.to_owned());
    }
    section.read(key, "a table's name of 3 to 255 letters, digits and `_.-`", |node| match node {
        Node::Text(name) if is_name(name) => Some(name.clone()),
        _ => None,
    })
}

/// The name of a table that may be switched off; `Some(None)` if it is, `None` if what is there is no name.
fn optional_table(section: &Section<'_>, key: &'static str, standard: &str) -> Option<Option<String>> {
    if !section.has(key) {
        return Some(Some(standard.to_owned()));
    }
    let allowed = "a table's name of 3 to 255 letters, digits and `_.-`, or false (not written)";
    section.read(key, allowed, |node| match node {
        Node::Boolean(false) => Some(None),
        Node::Text(name) if name.is_empty() => Some(None),
        Node::Text(name) if is_name(name) => Some(Some(name.clone())),
        _ => None,
    })
}

fn endpoint_url(text: &str) -> Result<(), &'static str> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let fits = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest)).and_then(host_and_port).is_some();
    if fits { Ok(()) } else { Err("must be http://HOST[:PORT] or https://HOST[:PORT]") }
}

fn iot_role(section: Section<'_>, folder: &Folder, cloud: Option<&CloudConfig>) -> Option<IotRoleConfig> {
    for (key, what) in [
        (
            "iot_endpoint",
            "the host of the AWS IoT credential provider (`aws iot describe-endpoint --endpoint-type iot:CredentialProvider`)",
        ),
        ("role_alias", "the role alias the gateway's certificate may assume"),
    ] {
        if !section.has(key) {
            section.missing(key, what);
        }
    }
    let iot_endpoint = section.parsed("iot_endpoint", |text| {
        if host_and_port(text).is_some() {
            Ok(text.to_owned())
        } else {
            Err("must be HOST or HOST:PORT, without https://")
        }
    });
    let role_alias = section.parsed("role_alias", |text| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_=,@-".contains(&b);
        if text.len() <= 128 && text.bytes().all(allowed) {
            Ok(text.to_owned())
        } else {
            Err("must be 1 to 128 letters, digits and `_=,@-`")
        }
    });
    let link = cloud.and_then(|cloud| cloud.broker.tls.as_ref());
    let ca = if section.has("ca") {
        folder.certificates(&section, "ca")
    } else {
        let ca = link.map(|tls| tls.ca.clone());
        if ca.is_none() {
            section.missing("ca", "the certificate that signs the provider's, a PEM file; [cloud] has none to share");
        }
        ca
    };
    let identity = if section.has("cert") || section.has("key") {
        folder.identity(&section)
    } else {
        let identity = link.and_then(|tls| tls.identity.clone());
        if identity.is_none() {
            section.missing("cert", "the gateway's certificate, a PEM file, and its `key`; [cloud] has none to share");
        }
        identity
    };
    section.finish();
    Some(IotRoleConfig { iot_endpoint: iot_endpoint?, role_alias: role_alias?, ca: ca?, identity: identity? })
}

/// Keys from the environment, else from the shared credentials file.
fn keys(section: &Section<'_>, environment: &Environment) -> Option<CredentialsConfig> {
    let id = environment.get("AWS_ACCESS_KEY_ID");
    let secret = environment.get("AWS_SECRET_ACCESS_KEY");
    match (id, secret) {
        (Some(id), Some(secret)) => Some(CredentialsConfig::Keys(AwsKeys {
            access_key_id: id.to_owned(),
            secret_access_key: Secret::new(secret.to_owned()),
            session_token: environment.get("AWS_SESSION_TOKEN").map(|token| Secret::new(token.to_owned())),
        })),
        (Some(_), None) => {
            section.blame("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not; set both or neither");
            None
        }
        (None, Some(_)) => {
            section.blame("AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not; set both or neither");
            None
        }
        (None, None) => shared_file(section, environment),
    }
}

/// The shared credentials file. Only its name goes on: keys in it are rotated while the gateway runs.
fn shared_file(section: &Section<'_>, environment: &Environment) -> Option<CredentialsConfig> {
    let path = match environment.get("AWS_SHARED_CREDENTIALS_FILE") {
        Some(path) => Some(PathBuf::from(path)),
        None => environment.get("HOME").map(|home| Path::new(home).join(".aws/credentials")),
    };
    let profile = environment.get("AWS_PROFILE").unwrap_or("default").to_owned();
    let why = match path {
        None => "HOME is not set, so there is no shared credentials file".to_owned(),
        Some(path) => match shared_access_key(&path, &profile) {
            Ok(_) => return Some(CredentialsConfig::SharedFile { path, profile }),
            Err(why) => why.to_string(),
        },
    };
    section.blame(format_args!(
        "`dynamodb` needs credentials and has none: no [dynamodb.credentials], AWS_ACCESS_KEY_ID is not set, and {why}"
    ));
    None
}
