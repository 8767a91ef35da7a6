//! Keyed latches: one writer at a time for each hot key, in the order of arrival.
//!
//! They save work, they do not make anything correct: a write that reaches the log between another's read and
//! its proposal makes that one conflict and run again. Held from the read to the apply, a latch lets a counter
//! that a hundred clients raise go up a hundred times without a single conflict.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// The latches of one node.
pub struct Latches<K> {
    entries: Arc<Mutex<HashMap<K, Entry>>>,
}

struct Entry {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Holders and waiters; the entry goes with the last one.
    users: usize,
}

/// Holds a latch until it is dropped.
pub struct Latched<K: Eq + Hash> {
    // Declared first, so that the latch is free before the entry may go.
    _guard: Option<OwnedMutexGuard<()>>,
    _ticket: Ticket<K>,
}

/// A place in the queue of one key.
struct Ticket<K: Eq + Hash> {
    entries: Arc<Mutex<HashMap<K, Entry>>>,
    key: K,
}

impl<K: Eq + Hash> Drop for Ticket<K> {
    fn drop(&mut self) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.users -= 1;
            if entry.users == 0 {
                entries.remove(&self.key);
            }
        }
    }
}

impl<K: Eq + Hash + Clone> Latches<K> {
    /// No latches, none held.
    pub fn new() -> Self {
        Self { entries: Arc::default() }
    }

    /// Waits for the latch of `key`, behind everyone who asked before.
    ///
    /// One request holds one latch, so latches cannot deadlock; a request that needs several would have to take
    /// them in the order of their keys.
    ///
    /// # Cancel safety
    /// A dropped future leaves the queue.
    pub async fn acquire(&self, key: K) -> Latched<K> {
        let (ticket, lock) = {
            let mut entries = self.entries.lock();
            let entry =
                entries.entry(key.clone()).or_insert_with(|| Entry { lock: Arc::default(), users: 0 });
            entry.users += 1;
            let lock = Arc::clone(&entry.lock);
            drop(entries);
            (Ticket { entries: Arc::clone(&self.entries), key }, lock)
        };
        let guard = lock.lock_owned().await;
        Latched { _guard: Some(guard), _ticket: ticket }
    }

    /// How many keys are held or waited for.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash + Clone> Default for Latches<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll};

    use super::*;

    /// Polls once: true when the future is still waiting.
    async fn waits<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        let mut future = future;
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }

    #[tokio::test]
    async fn one_key_is_held_once_and_others_are_free() {
        let latches = Latches::new();
        let held = latches.acquire("a").await;
        let other = latches.acquire("b").await;
        let mut second = pin!(latches.acquire("a"));
        assert!(waits(second.as_mut()).await);
        drop(held);
        let second = second.await;
        drop((second, other));
        assert!(latches.is_empty());
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_leaves_the_queue() {
        let latches = Latches::new();
        let held = latches.acquire(1).await;
        {
            let mut abandoned = pin!(latches.acquire(1));
            assert!(waits(abandoned.as_mut()).await);
        }
        drop(held);
        let again = latches.acquire(1).await;
        drop(again);
        assert!(latches.is_empty());
    }

    #[tokio::test]
    async fn waiters_are_served_in_order() {
        let latches = Arc::new(Latches::new());
        let order = Arc::new(Mutex::new(Vec::new()));
        let held = latches.acquire(()).await;
        let mut tasks = Vec::new();
        for number in 0..5 {
            let (queue, seen) = (Arc::clone(&latches), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _latched = queue.acquire(()).await;
                seen.lock().push(number);
            }));
            // The runtime of the test has one thread, so this lets the task reach the queue.
            tokio::task::yield_now().await;
        }
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), [0, 1, 2, 3, 4]);
    }
}
