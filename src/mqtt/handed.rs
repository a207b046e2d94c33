//! What is known after an order was handed to the floor.

/// The order left, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handed {
    /// It was acknowledged.
    Acknowledged,
    /// No acknowledgement came: the device may or may not have it. It will not be sent again.
    Unknown,
}

/// Not a byte of the order left, and none will.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHanded {
    /// Nobody is there to take it; why.
    #[error("{0}")]
    Offline(String),
    /// Its deadline passed before it could leave.
    #[error("expired before it could be sent")]
    Expired,
}
