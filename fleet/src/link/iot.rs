//! AWS IoT Core's data plane over HTTPS.

use std::error::Error;

use aws_config::SdkConfig;
use aws_sdk_iotdataplane::Client;
use aws_sdk_iotdataplane::config::StalledStreamProtectionConfig;
use aws_sdk_iotdataplane::config::retry::RetryConfig;
use aws_sdk_iotdataplane::config::timeout::TimeoutConfig;
use aws_sdk_iotdataplane::error::{DisplayErrorContext, SdkError};
use aws_sdk_iotdataplane::primitives::Blob;
use tracing::error;

use super::{LinkError, PUBLISH_TIMEOUT};

/// A publisher; clones share connections.
#[derive(Debug, Clone)]
pub struct IotLink {
    client: Client,
}

impl IotLink {
    /// Nothing is sent yet. `endpoint` is the account's data endpoint (`…-ats.iot.REGION.amazonaws.com`), with or
    /// without `https://`.
    #[must_use]
    pub fn new(aws: &SdkConfig, endpoint: &str) -> Self {
        let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
        let timeouts = TimeoutConfig::builder().operation_timeout(PUBLISH_TIMEOUT).build();
        let config = aws_sdk_iotdataplane::config::Builder::from(aws)
            .endpoint_url(url)
            .timeout_config(timeouts)
            // One try: of two, the refusal of the second would hide that the first may have been taken.
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Self { client: Client::from_conf(config) }
    }

    pub(super) async fn publish(&self, topic: &str, payload: &str) -> Result<(), LinkError> {
        let publish = self.client.publish().topic(topic).qos(1).retain(false).payload(Blob::new(payload));
        let Err(failure) = publish.send().await else { return Ok(()) };
        error!(topic, reason = %DisplayErrorContext(&failure), "a command was not published");
        Err(match &failure {
            // Refused: nothing was taken.
            SdkError::ConstructionFailure(_) => LinkError::NotSent("the request could not be signed".to_owned()),
            SdkError::ServiceError(refused) if refused.raw().status().is_client_error() => {
                LinkError::NotSent(format!("AWS IoT refuses it ({})", refused.raw().status().as_u16()))
            }
            // No connection, so no request either; a broken one may have carried it.
            SdkError::DispatchFailure(failed) if failed.is_user() || never_connected(&failure) => {
                LinkError::NotSent("AWS IoT could not be reached".to_owned())
            }
            SdkError::DispatchFailure(_) => LinkError::Unknown("the connection to AWS IoT broke".to_owned()),
            _ => LinkError::Unknown("AWS IoT did not answer".to_owned()),
        })
    }
}

fn never_connected(failure: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(failure);
    while let Some(error) = cause {
        if let Some(client) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            return client.is_connect();
        }
        cause = error.source();
    }
    false
}
