//! What the lanes need of the store; the store itself, and a double in tests.

use std::future::Future;

use floorgate_model::{DeviceId, ExecutionRecord, GatewayId};

use crate::shadow::store::{StoreError, Wakeups};
use crate::shadow::{DeviceView, HistoryBlock, Lane, OutboxEntry, OutboxOrder, StateSnapshot, Store};

/// The store as the uploader sees it. Meanings and errors are those of [`Store`]'s methods of the same names.
#[expect(missing_docs, reason = "each method is documented where it is implemented, at `Store`")]
pub trait SyncSource: Send + Sync + 'static {
    fn wakeups(&self) -> &Wakeups;
    fn devices(&self) -> impl Future<Output = Result<Vec<DeviceView>, StoreError>> + Send;
    fn device(&self, id: &DeviceId) -> impl Future<Output = Result<Option<DeviceView>, StoreError>> + Send;
    /// [`Store::peek_outbox_after`] of [`Lane::Table`].
    fn peek_executions(
        &self,
        order: OutboxOrder,
        after: i64,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<OutboxEntry>, StoreError>> + Send;
    /// [`Store::executions`] of all devices.
    fn newest_executions(&self, limit: usize) -> impl Future<Output = Result<Vec<ExecutionRecord>, StoreError>> + Send;
    /// [`Store::confirm_outbox`] of [`Lane::Table`].
    fn confirm_executions(&self, seqs: Vec<i64>) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn peek_states(
        &self,
        urgent_only: bool,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<StateSnapshot>, StoreError>> + Send;
    fn confirm_state(&self, device: &DeviceId, version: u64) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn adopt_version(&self, device: &DeviceId, version: u64) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn taken_over(
        &self,
        device: &DeviceId,
        by: Option<GatewayId>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn peek_blocks(&self, limit: usize) -> impl Future<Output = Result<Vec<HistoryBlock>, StoreError>> + Send;
    fn confirm_blocks(&self, ids: Vec<i64>) -> impl Future<Output = Result<(), StoreError>> + Send;
    fn park_block(&self, id: i64, reason: String) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl SyncSource for Store {
    fn wakeups(&self) -> &Wakeups {
        Self::wakeups(self)
    }
    async fn devices(&self) -> Result<Vec<DeviceView>, StoreError> {
        Self::devices(self).await
    }
    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceView>, StoreError> {
        Self::device(self, id).await
    }
    async fn peek_executions(
        &self,
        order: OutboxOrder,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        self.peek_outbox_after(Lane::Table, order, after, limit).await
    }
    async fn newest_executions(&self, limit: usize) -> Result<Vec<ExecutionRecord>, StoreError> {
        self.executions(None, limit).await
    }
    async fn confirm_executions(&self, seqs: Vec<i64>) -> Result<(), StoreError> {
        self.confirm_outbox(Lane::Table, seqs).await
    }
    async fn peek_states(&self, urgent_only: bool, limit: usize) -> Result<Vec<StateSnapshot>, StoreError> {
        Self::peek_states(self, urgent_only, limit).await
    }
    async fn confirm_state(&self, device: &DeviceId, version: u64) -> Result<(), StoreError> {
        Self::confirm_state(self, device, version).await
    }
    async fn adopt_version(&self, device: &DeviceId, version: u64) -> Result<(), StoreError> {
        Self::adopt_version(self, device, version).await
    }
    async fn taken_over(&self, device: &DeviceId, by: Option<GatewayId>) -> Result<(), StoreError> {
        Self::taken_over(self, device, by).await
    }
    async fn peek_blocks(&self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        Self::peek_blocks(self, limit).await
    }
    async fn confirm_blocks(&self, ids: Vec<i64>) -> Result<(), StoreError> {
        Self::confirm_blocks(self, ids).await
    }
    async fn park_block(&self, id: i64, reason: String) -> Result<(), StoreError> {
        Self::park_block(self, id, reason).await
    }
}
