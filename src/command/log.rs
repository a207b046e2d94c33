//! What this room needs of the store: the journal and the device's word.
//!
//! A trait of its own, so that the dispatcher's tests can put any device behaviour and any failure behind it.

use std::future::Future;

use floorgate_model::{CommandId, DeviceId, ExecutionRecord};
use tokio::sync::watch;

use crate::shadow::store::{Ending, Journalled, NewExecution, OpenExecution};
use crate::shadow::{DeviceView, Store, StoreError, Wakeups};

/// The journal of executions and what is known of the devices. Meanings, errors and cancel safety are those of the
/// methods of [`Store`] with the same names.
#[expect(missing_docs, reason = "each method is documented at `Store`")]
pub trait CommandLog: Send + Sync + 'static {
    fn wakeups(&self) -> &Wakeups;
    fn floor_changes(&self) -> watch::Receiver<u64>;
    fn device(&self, id: &DeviceId) -> impl Future<Output = Result<Option<DeviceView>, StoreError>> + Send;
    fn journal(&self, entry: NewExecution) -> impl Future<Output = Result<Journalled, StoreError>> + Send;
    fn waiting(&self) -> impl Future<Output = Result<Vec<OpenExecution>, StoreError>> + Send;
    fn in_progress(&self) -> impl Future<Output = Result<Vec<OpenExecution>, StoreError>> + Send;
    fn open_execution(
        &self,
        device: &DeviceId,
        id: &CommandId,
    ) -> impl Future<Output = Result<Option<OpenExecution>, StoreError>> + Send;
    fn claim(
        &self,
        device: &DeviceId,
        id: &CommandId,
    ) -> impl Future<Output = Result<Option<OpenExecution>, StoreError>> + Send;
    fn finish(
        &self,
        device: &DeviceId,
        id: &CommandId,
        ending: Ending,
    ) -> impl Future<Output = Result<Option<ExecutionRecord>, StoreError>> + Send;
}

/// Says that the store does not do something now. A failing disk the store has told of already, once for all.
pub(super) fn tell(error: &StoreError, what: &str) {
    if error.fault().is_some() {
        tracing::debug!(%error, "{what}");
    } else {
        tracing::warn!(%error, "{what}");
    }
}

impl CommandLog for Store {
    fn wakeups(&self) -> &Wakeups {
        Self::wakeups(self)
    }
    fn floor_changes(&self) -> watch::Receiver<u64> {
        Self::floor_changes(self)
    }
    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceView>, StoreError> {
        Self::device(self, id).await
    }
    async fn journal(&self, entry: NewExecution) -> Result<Journalled, StoreError> {
        Self::journal(self, entry).await
    }
    async fn waiting(&self) -> Result<Vec<OpenExecution>, StoreError> {
        Self::waiting(self).await
    }
    async fn in_progress(&self) -> Result<Vec<OpenExecution>, StoreError> {
        Self::in_progress(self).await
    }
    async fn open_execution(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        Self::open_execution(self, device, id).await
    }
    async fn claim(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        Self::claim(self, device, id).await
    }
    async fn finish(
        &self,
        device: &DeviceId,
        id: &CommandId,
        ending: Ending,
    ) -> Result<Option<ExecutionRecord>, StoreError> {
        Self::finish(self, device, id, ending).await
    }
}
