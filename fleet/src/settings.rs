//! The environment and the flags as valid types; the only reader of the environment.
//!
//! | Variable | Meaning | Default |
//! |---|---|---|
//! | `AWS_REGION` | region of the tables | what the profile says, else `us-east-1` |
//! | `AWS_ENDPOINT_URL_DYNAMODB` | a DynamoDB-compatible store | AWS |
//! | `FLOORGATE_DEVICES_TABLE`, `FLOORGATE_HISTORY_TABLE`, `FLOORGATE_COMMANDS_TABLE` | names of the tables | the contract's |
//! | `FLOORGATE_IOT_ENDPOINT` | data endpoint of AWS IoT Core | none |
//! | `FLOORGATE_MQTT_URL` | a broker instead, `mqtt://` or `mqtts://` | none |
//! | `FLOORGATE_MQTT_CA`, `FLOORGATE_MQTT_CERT`, `FLOORGATE_MQTT_KEY` | files for `mqtts://` | none |
//! | `FLOORGATE_MQTT_USER`, `FLOORGATE_MQTT_PASSWORD_FILE` | who we are to the broker | none |
//! | `FLOORGATE_BUDGETS` | `recalibrate=5/600,reboot=3/900`: commands in seconds, for each caller | [`Budgets::default`] |
//!
//! Credentials are AWS's own chain: variables, profile, web identity, container, instance.

use std::path::PathBuf;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_http_client::{Builder as HttpBuilder, tls};

use crate::clock::Clock;
use crate::fleet::{Budget, Budgets, Fleet};
use crate::link::{IotLink, Link, MqttLink, MqttSettings};
use crate::store::{Store, Tables};

/// Where the tables stand if nobody says.
const REGION_DEFAULT: &str = "us-east-1";

/// Where the tables are, how commands leave, what may be sent.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Region, if it is not what AWS's own settings say.
    pub region: Option<String>,
    /// A DynamoDB-compatible store.
    pub dynamodb_endpoint: Option<String>,
    /// Names of the tables.
    pub tables: Tables,
    /// How commands leave.
    pub way: Way,
    /// What may be sent.
    pub budgets: Budgets,
}

/// How commands leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Way {
    /// They do not.
    #[default]
    None,
    /// By this data endpoint of AWS IoT Core.
    Iot(String),
    /// By this broker.
    Mqtt(MqttSettings),
}

/// What is wrong with a setting, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

impl Settings {
    /// Reads the environment of the process.
    ///
    /// # Errors
    /// [`SettingsError`] naming the variable.
    pub fn from_environment() -> Result<Self, SettingsError> {
        Self::read(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Reads variables from anywhere.
    ///
    /// # Errors
    /// [`SettingsError`] naming the variable.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let table = |name: &str, default: String| variable(name).unwrap_or(default);
        let defaults = Tables::default();
        let tables = Tables {
            devices: table("FLOORGATE_DEVICES_TABLE", defaults.devices),
            history: table("FLOORGATE_HISTORY_TABLE", defaults.history),
            commands: table("FLOORGATE_COMMANDS_TABLE", defaults.commands),
        };
        let way = match (variable("FLOORGATE_IOT_ENDPOINT"), variable("FLOORGATE_MQTT_URL")) {
            (Some(_), Some(_)) => {
                let text = "FLOORGATE_IOT_ENDPOINT and FLOORGATE_MQTT_URL are both set; commands leave by one of them";
                return Err(SettingsError(text.to_owned()));
            }
            (Some(endpoint), None) => Way::Iot(endpoint),
            (None, Some(url)) => Way::Mqtt(broker(url, &variable)?),
            (None, None) => Way::None,
        };
        let budgets = match variable("FLOORGATE_BUDGETS") {
            Some(text) => budgets(&text).map_err(|what| SettingsError(format!("FLOORGATE_BUDGETS: {what}")))?,
            None => Budgets::default(),
        };
        Ok(Self {
            region: variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")),
            dynamodb_endpoint: variable("AWS_ENDPOINT_URL_DYNAMODB"),
            tables,
            way,
            budgets,
        })
    }

    /// Builds the tools. Nothing is sent yet, but credentials may be looked for.
    ///
    /// # Errors
    /// [`SettingsError`] if a file of the broker's cannot be used.
    pub async fn fleet(&self) -> Result<Fleet, SettingsError> {
        let aws = self.aws().await;
        let store = Store::new(&aws, self.dynamodb_endpoint.as_deref(), self.tables.clone());
        let link = match &self.way {
            Way::None => Link::Absent,
            Way::Iot(endpoint) => Link::Iot(IotLink::new(&aws, endpoint)),
            Way::Mqtt(broker) => Link::Mqtt(MqttLink::new(broker).map_err(SettingsError)?),
        };
        Ok(Fleet::new(store, link, self.budgets.clone(), Clock::default()))
    }

    async fn aws(&self) -> SdkConfig {
        let http = HttpBuilder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let mut loader =
            aws_config::defaults(BehaviorVersion::latest()).http_client(http).sleep_impl(TokioSleep::new());
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        } else {
            let chain = aws_config::meta::region::RegionProviderChain::default_provider();
            loader = loader.region(chain.or_else(REGION_DEFAULT));
        }
        loader.load().await
    }
}

fn broker(url: String, variable: &impl Fn(&str) -> Option<String>) -> Result<MqttSettings, SettingsError> {
    let pair = |one: &str, other: &str| match (variable(one), variable(other)) {
        (Some(first), Some(second)) => Ok(Some((first, second))),
        (None, None) => Ok(None),
        (first, _) => {
            let (set, missing) = if first.is_some() { (one, other) } else { (other, one) };
            Err(SettingsError(format!("{set} is set and {missing} is not; both are needed")))
        }
    };
    let identity = pair("FLOORGATE_MQTT_CERT", "FLOORGATE_MQTT_KEY")?;
    let user = pair("FLOORGATE_MQTT_USER", "FLOORGATE_MQTT_PASSWORD_FILE")?;
    Ok(MqttSettings {
        url,
        ca: variable("FLOORGATE_MQTT_CA").map(PathBuf::from),
        identity: identity.map(|(certificate, key)| (certificate.into(), key.into())),
        user: user.map(|(name, file)| (name, file.into())),
    })
}

/// `recalibrate=5/600,reboot=3/900`; what is not named keeps its default.
fn budgets(text: &str) -> Result<Budgets, String> {
    let mut budgets = Budgets::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let read = || {
            let (name, figures) = part.split_once('=')?;
            let (commands, seconds) = figures.split_once('/')?;
            let (commands, seconds) = (commands.trim().parse().ok()?, seconds.trim().parse().ok()?);
            // As many commands as milliseconds or more would be no budget.
            let fits = commands > 0 && seconds > 0 && u64::from(commands) <= seconds * 1_000 && seconds <= 86_400;
            fits.then_some((name.trim(), Budget { commands, within: Duration::from_secs(seconds) }))
        };
        let Some((name, budget)) = read() else {
            return Err(format!("`{part}` is no budget; write COMMAND=COMMANDS/SECONDS, at most a day"));
        };
        match name {
            "recalibrate" => budgets.recalibrate = budget,
            "reboot" => budgets.reboot = budget,
            "update_config" => budgets.update_config = budget,
            "set_status" => budgets.set_status = budget,
            "dry_run" => budgets.dry_run = budget,
            "not_sent" => budgets.not_sent = budget,
            _ => {
                return Err(format!(
                    "`{name}` has no budget; there are recalibrate, reboot, update_config, set_status, dry_run, not_sent"
                ));
            }
        }
    }
    Ok(budgets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let found =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Settings::read(found)
    }

    #[test]
    fn an_empty_environment_means_the_contracts_tables_and_no_way_out() {
        let settings = read(&[]).unwrap();
        assert_eq!((settings.tables, settings.way), (Tables::default(), Way::None));
    }

    #[test]
    fn budgets_are_read_and_what_is_not_named_keeps_its_default() {
        let settings = read(&[("FLOORGATE_BUDGETS", "reboot=1/60, dry_run=5/10")]).unwrap();
        assert_eq!(settings.budgets.reboot, Budget { commands: 1, within: Duration::from_secs(60) });
        assert_eq!(settings.budgets.recalibrate, Budgets::default().recalibrate);
        for wrong in ["reboot=0/60", "reboot=1", "explode=1/60", "reboot=1/0", "reboot=99999999/1"] {
            assert!(
                read(&[("FLOORGATE_BUDGETS", wrong)]).unwrap_err().to_string().contains("FLOORGATE_BUDGETS"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(read(&[("FLOORGATE_IOT_ENDPOINT", "x"), ("FLOORGATE_MQTT_URL", "mqtt://y")]).is_err());
        let half = read(&[("FLOORGATE_MQTT_URL", "mqtt://y"), ("FLOORGATE_MQTT_USER", "me")]).unwrap_err();
        assert!(half.to_string().contains("FLOORGATE_MQTT_PASSWORD_FILE is not"), "{half}");
    }
}
