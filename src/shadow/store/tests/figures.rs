//! What `stats` says agrees with what is handed out.

use super::*;

/// Three closed blocks of A, ten samples each, a minute apart.
async fn three_blocks(store: &Store) -> Vec<HistoryBlock> {
    for minute in 0..3 {
        for n in 0..10 {
            take(store, sample("A", minute * 600_000 - 1_800_000 + n, 140.0)).await;
        }
    }
    tokio::time::advance(Duration::from_secs(61)).await;
    store.tick().await.unwrap();
    let blocks = store.peek_blocks(100).await.unwrap();
    assert_eq!(blocks.iter().map(|block| block.offsets_ms.len()).collect::<Vec<_>>(), [10, 10, 10]);
    blocks
}

#[tokio::test(start_paused = true)]
async fn what_is_confirmed_waits_no_more_in_any_figure_though_it_is_written_later() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    let blocks = three_blocks(&store).await;
    for state in store.peek_states(false, 10).await.unwrap() {
        store.confirm_state(&state.view.device_id, state.view.version).await.unwrap();
    }
    clock.put(Timestamp::from_millis(T0 + 1_800_000));
    let before = store.stats().await.unwrap();
    assert_eq!((before.blocks_waiting, before.samples_waiting, before.oldest_waiting_seconds), (3, 30, 3_600));

    store.confirm_blocks(vec![blocks[0].id]).await.unwrap();
    let one = store.stats().await.unwrap();
    assert_eq!((one.blocks_waiting, one.samples_waiting, one.oldest_waiting_seconds), (2, 20, 3_000));
    assert_eq!(store.peek_blocks(100).await.unwrap(), blocks[1..]);

    // Twice, and with one that is parked meanwhile: nothing is taken off twice.
    store.park_block(blocks[1].id, "refused".to_owned()).await.unwrap();
    store.confirm_blocks(vec![blocks[0].id, blocks[1].id, blocks[2].id]).await.unwrap();
    store.confirm_blocks(vec![blocks[2].id]).await.unwrap();
    let none = store.stats().await.unwrap();
    assert_eq!((none.blocks_waiting, none.samples_waiting, none.blocks_parked), (0, 0, 1));
    assert_eq!((none.oldest_waiting_seconds, none.samples_open), (0, 0));

    store.close().await.unwrap();
    let stats = open(folder.path()).stats().await.unwrap();
    assert_eq!((stats.blocks_waiting, stats.samples_waiting, stats.blocks_parked), (0, 0, 1), "the file agrees");
}
