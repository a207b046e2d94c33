//! From a [`LinkConfig`] to rumqttc's options, and from rumqttc's errors to sentences.

use std::io::ErrorKind;
use std::path::Path;

use aws_iot_device_sdk_rust::settings::{MQTTMaxPacketSize, MQTTOptionsOverrides};
use aws_iot_device_sdk_rust::{AWSIoTAsyncClient, AWSIoTError, AWSIoTSettings};
use rumqttc::{
    ConnectReturnCode, ConnectionError, LastWill, MqttOptions, QoS, StateError, TlsConfiguration, TlsError, Transport,
};

use super::retry::Cut;
use super::tls::{ALPN_AWS_443, Pem, TlsFiles};
use super::{CONNECT_WAIT, INCOMING_MAX, LinkConfig, ONCE_WINDOW, OUTBOX_WINDOW, PACKET_MAX};

/// Packet ids rumqttc goes round; at least twice what we ever have on its way, so that it never waits by itself.
pub(super) const IN_FLIGHT: u16 = 128;
const _: () = assert!((OUTBOX_WINDOW + ONCE_WINDOW + 2) * 2 <= IN_FLIGHT as usize);

/// The options for the next connection; reads the certificates anew.
pub(super) async fn options(config: &LinkConfig) -> Result<MqttOptions, String> {
    let mut options = match (&config.tls, config.address.tls) {
        (Some(files), true) => match &files.identity {
            Some((cert, key)) if config.aws_iot => aws_options(config, files, cert, key).await?,
            _ => {
                let mut options = plain_options(config);
                let pem = files.read().await?;
                let tls = files.client_config(&pem, alpn(config))?;
                options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)));
                options
            }
        },
        (None, true) => return Err("mqtts:// needs certificates; name a `ca`".to_owned()),
        (_, false) => plain_options(config),
    };
    options.set_manual_acks(true).set_max_packet_size(INCOMING_MAX, PACKET_MAX);
    if let Some(login) = &config.login {
        options.set_credentials(&login.user, &login.password);
    }
    Ok(options)
}

fn plain_options(config: &LinkConfig) -> MqttOptions {
    let mut options = MqttOptions::new(&config.client_id, &config.address.host, config.address.port);
    options.set_keep_alive(config.keep_alive).set_clean_session(false).set_inflight(IN_FLIGHT);
    if let Some(will) = will(config) {
        options.set_last_will(will);
    }
    options
}

fn will(config: &LinkConfig) -> Option<LastWill> {
    let presence = config.presence.as_ref()?;
    Some(LastWill::new(&presence.topic, presence.will.to_vec(), QoS::AtLeastOnce, true))
}

fn alpn(config: &LinkConfig) -> Option<&'static [u8]> {
    (config.aws_iot && config.address.port == 443).then_some(ALPN_AWS_443)
}

/// The AWS IoT device SDK sets the connection up: it loads certificate and key, brings EC keys into the form TLS wants
/// (SEC1, mislabelled and explicit-parameter ones included), and fills in the options. Its event loop is not used: it
/// ends at the first error, acknowledges before anything is stored, and drops messages for slow readers.
async fn aws_options(config: &LinkConfig, files: &TlsFiles, cert: &Path, key: &Path) -> Result<MqttOptions, String> {
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| format!("the path `{}` is not UTF-8", path.display()))
    };
    // Reading first gives an error that names the file; the SDK's names none.
    files.read().await?;
    let overrides = MQTTOptionsOverrides {
        port: Some(config.address.port),
        clean_session: Some(false),
        keep_alive: Some(config.keep_alive),
        max_packet_size: Some(MQTTMaxPacketSize::new(INCOMING_MAX, PACKET_MAX)),
        inflight: Some(IN_FLIGHT),
        last_will: will(config),
        conn_timeout: Some(CONNECT_WAIT.as_secs()),
        request_channel_capacity: None,
        pending_throttle: None,
        transport: None,
    };
    let settings = AWSIoTSettings::new(
        config.client_id.clone(),
        text(&files.ca)?,
        text(cert)?,
        text(key)?,
        config.address.host.clone(),
        Some(overrides),
    );
    let (_, (event_loop, _)) = AWSIoTAsyncClient::new(settings).await.map_err(|e| match e {
        AWSIoTError::KeyNormalizationError(e) => format!("`{}` has no usable private key: {e}", key.display()),
        other => other.to_string(),
    })?;
    let mut options = event_loop.mqtt_options.clone();
    // The SDK leaves the choice of the crypto provider to the process and sets no ALPN; ours is made explicit.
    if let Transport::Tls(TlsConfiguration::Simple { ca, client_auth, .. }) = options.transport() {
        let tls = files.client_config(&Pem { ca, identity: client_auth }, alpn(config))?;
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)));
    }
    Ok(options)
}

/// How the broker ended the connection.
pub(super) fn cut(error: &ConnectionError) -> Cut {
    let ends = |kind| {
        matches!(
            kind,
            ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::UnexpectedEof
                | ErrorKind::BrokenPipe
        )
    };
    match error {
        _ if is_oversized(error) => Cut::Oversized,
        ConnectionError::MqttState(StateError::ConnectionAborted) => Cut::Closed,
        ConnectionError::MqttState(StateError::Io(e)) | ConnectionError::Io(e) if ends(e.kind()) => Cut::Closed,
        _ => Cut::Other,
    }
}

/// Whether the connection ended because the broker sent a packet over [`INCOMING_MAX`].
fn is_oversized(error: &ConnectionError) -> bool {
    let limit =
        |error: &rumqttc::mqttbytes::Error| matches!(error, rumqttc::mqttbytes::Error::PayloadSizeLimitExceeded(_));
    matches!(error, ConnectionError::MqttState(StateError::Deserialization(error)) if limit(error))
}

/// What happened, which broker, what now.
pub(super) fn explain(error: &ConnectionError, config: &LinkConfig) -> String {
    let broker = &config.address;
    match error {
        ConnectionError::NetworkTimeout => format!("`{broker}` did not answer within {} s", CONNECT_WAIT.as_secs()),
        ConnectionError::FlushTimeout => format!("`{broker}` stopped reading for {} s", CONNECT_WAIT.as_secs()),
        ConnectionError::Io(e) => format!("cannot reach `{broker}`: {e}"),
        ConnectionError::Tls(e) => explain_tls(e, config),
        ConnectionError::ConnectionRefused(code) => {
            let why = match code {
                ConnectReturnCode::BadUserNamePassword => "bad user name or password",
                ConnectReturnCode::NotAuthorized => {
                    "not authorized; check client id, user, and the certificate's policy"
                }
                ConnectReturnCode::BadClientId => "it does not accept this client id",
                ConnectReturnCode::ServiceUnavailable => "service unavailable",
                _ => "it does not speak MQTT 3.1.1",
            };
            format!("`{broker}` refused the connection of `{}`: {why}", config.client_id)
        }
        ConnectionError::MqttState(StateError::ConnectionAborted) => format!("`{broker}` closed the connection"),
        ConnectionError::MqttState(StateError::AwaitPingResp) => {
            format!("`{broker}` did not answer a ping within {} s", config.keep_alive.as_secs())
        }
        ConnectionError::MqttState(StateError::Io(e)) => format!("the connection to `{broker}` broke: {e}"),
        oversized if is_oversized(oversized) => {
            format!("`{broker}` sent a packet over {INCOMING_MAX} bytes")
        }
        other => format!("the connection to `{broker}` broke: {other}"),
    }
}

fn explain_tls(error: &TlsError, config: &LinkConfig) -> String {
    tls_words(&error.to_string(), config)
}

/// The words of an error of TLS, and what they mean for this link.
pub(in crate::mqtt) fn tls_words(text: &str, config: &LinkConfig) -> String {
    let broker = &config.address;
    // What the other side objects to is ours.
    if let Some((_, alert)) = text.split_once("received fatal alert: ")
        && (alert.contains("Certificate") || alert.contains("UnknownCA") || alert.contains("AccessDenied"))
    {
        return format!("`{broker}` does not accept our certificate ({alert}); is it active there, and not expired?");
    }
    let ca = config.tls.as_ref().map_or_else(String::new, |files| files.ca.display().to_string());
    // A bad signature is an authority of the right name with another key: one that was made anew.
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        return format!("the certificate of `{broker}` comes from no authority in `{ca}`; is it the right `ca`?");
    }
    if text.contains("NotValidForName") {
        return format!(
            "the certificate of `{broker}` is for another host name; connect by the name it was issued for"
        );
    }
    if text.contains("Expired") {
        return format!("the certificate of `{broker}` has expired, or this machine's clock is wrong");
    }
    if text.contains("NotValidYet") {
        return format!("the certificate of `{broker}` is not valid yet; is this machine's clock right?");
    }
    format!("TLS with `{broker}` failed: {}", text.trim_start_matches("I/O: "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::link::Presence;
    use bytes::Bytes;
    use std::sync::Arc;
    use std::time::Duration;

    fn config(url: &str) -> LinkConfig {
        let mut config = LinkConfig::new("cloud", url.parse().unwrap(), "GW-1");
        config.presence = Some(Presence {
            topic: "gateways/GW-1/state".into(),
            will: Bytes::from_static(b"{}"),
            payload: Arc::new(|_| Bytes::new()),
        });
        config
    }

    fn write_certificates(folder: &Path) -> TlsFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["x".into()]).unwrap().self_signed(&key).unwrap();
        let path = |name: &str| folder.join(name);
        std::fs::write(path("ca.pem"), cert.pem()).unwrap();
        std::fs::write(path("cert.pem"), cert.pem()).unwrap();
        std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
        TlsFiles { ca: path("ca.pem"), identity: Some((path("cert.pem"), path("key.pem"))) }
    }

    fn assert_safe(options: &MqttOptions) {
        assert!(!options.clean_session() && options.manual_acks());
        assert_eq!((options.max_packet_size(), options.inflight()), (INCOMING_MAX, IN_FLIGHT));
        assert_eq!(options.keep_alive(), Duration::from_secs(30));
        assert!(options.last_will().unwrap().retain);
    }

    #[tokio::test]
    async fn a_plain_link_has_none_of_the_clients_dangerous_defaults() {
        let options = options(&config("mqtt://h:1884")).await.unwrap();
        assert_safe(&options);
        assert_eq!(options.broker_address(), ("h".to_owned(), 1_884));
        assert!(matches!(options.transport(), Transport::Tcp));
    }

    #[tokio::test]
    async fn the_aws_sdk_sets_up_the_same_options_and_port_443_gets_its_protocol_name() {
        let folder = tempfile::tempdir().unwrap();
        for (url, alpn) in [("mqtts://h:443", vec![ALPN_AWS_443.to_vec()]), ("mqtts://h:8884", vec![])] {
            let mut config = config(url);
            (config.tls, config.aws_iot) = (Some(write_certificates(folder.path())), true);
            let options = options(&config).await.unwrap();
            assert_safe(&options);
            assert_eq!(options.broker_address().1, config.address.port);
            let Transport::Tls(TlsConfiguration::Rustls(tls)) = options.transport() else { panic!("no TLS") };
            assert_eq!(tls.alpn_protocols, alpn);
            assert!(tls.client_auth_cert_resolver.has_certs());
        }
    }

    #[tokio::test]
    async fn a_missing_certificate_is_named_also_on_the_way_through_the_sdk() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config("mqtts://h");
        (config.tls, config.aws_iot) = (Some(write_certificates(folder.path())), true);
        std::fs::remove_file(folder.path().join("key.pem")).unwrap();
        let Err(error) = options(&config).await else { panic!("it found a key") };
        assert!(error.starts_with("cannot read `") && error.contains("key.pem`"), "{error}");
    }
}
