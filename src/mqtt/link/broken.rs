//! Why a connection is given up.

use super::retry::Cut;
use crate::shadow::StoreError;

/// Why a connection ends, and whether the session knows exactly what left on it.
pub(super) struct Broken {
    pub(super) why: String,
    pub(super) exact: bool,
    pub(super) cut: Cut,
}

impl Broken {
    /// Given up by us in the middle of a poll.
    pub(super) fn inexact(why: String) -> Self {
        Self { why, exact: false, cut: Cut::Other }
    }
}

impl From<rumqttc::ClientError> for Broken {
    fn from(error: rumqttc::ClientError) -> Self {
        Self::inexact(format!("the client took no request: {error}"))
    }
}

pub(super) fn unstored(error: StoreError) -> Broken {
    let why = format!("a message could not be stored and stays with the broker: {error}");
    Broken { cut: Cut::Unstored, ..Broken::inexact(why) }
}
