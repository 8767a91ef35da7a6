//! Limit (b): appends to a file, one `fdatasync` for everything that waits.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io::Write as _,
    path::Path,
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot,
    task::{JoinSet, LocalSet},
};

use crate::{Result, load::Seen};

/// About what one kv put adds to the Raft log of a node, in bytes.
pub const ENTRY_BYTES: usize = 1_000;

/// So many writers, each of which waits for its bytes to be on the disk before it writes the next.
pub async fn run(directory: &Path, writers: usize, length: Duration) -> Result<Seen> {
    let file = directory.join("appends");
    let opened = File::create(&file)?;
    let (done, seen) = oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime
            .map_err(Into::into)
            .and_then(|runtime| LocalSet::new().block_on(&runtime, measured(opened, writers, length)));
        // Nobody waits any more when the run has ended otherwise.
        drop(done.send(outcome));
    });
    let seen = seen.await?;
    std::fs::remove_file(file)?;
    seen
}

async fn measured(file: File, writers: usize, length: Duration) -> Result<Seen> {
    let (queue, waiting) = mpsc::channel();
    let disk = std::thread::spawn(move || commit_groups(file, &waiting));
    let (stopped, nanos) = (Rc::new(Cell::new(false)), Rc::new(RefCell::new(Vec::new())));
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let (queue, stopped, nanos) = (queue.clone(), stopped.clone(), nanos.clone());
        tasks.spawn_local(async move {
            while !stopped.get() {
                let (synced, done) = oneshot::channel();
                let begun = Instant::now();
                queue.send(synced)?;
                done.await?;
                nanos.borrow_mut().push(begun.elapsed());
            }
            crate::Result::Ok(())
        });
    }
    drop(queue);
    tokio::time::sleep(length).await;
    stopped.set(true);
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let elapsed = begun.elapsed();
    disk.join().map_err(|_| "the disk's thread panicked")??;
    let mut nanos = nanos.take();
    nanos.sort_unstable();
    let at = |hundredth: usize| nanos.get(nanos.len() * hundredth / 100).copied().unwrap_or_default();
    let per_second = nanos.len() as f64 / elapsed.as_secs_f64();
    Ok(Seen { per_second, p50: at(50), p99: at(99), ..Seen::default() })
}

/// Writes what waits, syncs once, tells everybody.
fn commit_groups(mut file: File, waiting: &mpsc::Receiver<oneshot::Sender<()>>) -> std::io::Result<()> {
    let (mut group, mut bytes) = (Vec::new(), Vec::new());
    while let Ok(first) = waiting.recv() {
        group.push(first);
        group.extend(waiting.try_iter());
        bytes.resize(group.len() * ENTRY_BYTES, 0x5a);
        file.write_all(&bytes)?;
        file.sync_data()?;
        for synced in group.drain(..) {
            // Who does not wait any more needs no answer.
            let _ = synced.send(());
        }
    }
    Ok(())
}
