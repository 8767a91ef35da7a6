//! Requests that the leader is executing, by id: the same request coming in again waits for the first.
//!
//! A node that lost its connection to the leader asks again with the same id, perhaps while the first attempt
//! still waits for its place in the log. Executing both would be harmless (the state applies an id once), but
//! the second would read a state in which the first has half happened.

use std::{collections::HashMap, sync::Arc};

use keystead_storage::RequestId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Who waits for each request, in the order of arrival.
type Running<T> = HashMap<RequestId, Vec<oneshot::Sender<T>>>;

/// The requests in flight, each of which ends in a `T`.
pub struct InFlight<T> {
    running: Arc<Mutex<Running<T>>>,
}

/// Whoever runs the request holds this; dropping it without an outcome lets the waiting ones know.
pub struct Leading<T> {
    /// `None` once it is finished: the id may be another's then.
    running: Option<Arc<Mutex<Running<T>>>>,
    id: RequestId,
}

/// Waits for the outcome of a request.
pub struct Following<T>(oneshot::Receiver<T>);

impl<T: Clone> InFlight<T> {
    /// Nothing in flight.
    pub fn new() -> Self {
        Self { running: Arc::default() }
    }

    /// Joins the request `id`. The first to come also gets the duty to run it.
    pub fn enter(&self, id: RequestId) -> (Option<Leading<T>>, Following<T>) {
        let (sender, receiver) = oneshot::channel();
        let mut running = self.running.lock();
        if let Some(waiting) = running.get_mut(&id) {
            waiting.retain(|waiting| !waiting.is_closed());
            waiting.push(sender);
            return (None, Following(receiver));
        }
        running.insert(id, vec![sender]);
        let leading = Leading { running: Some(Arc::clone(&self.running)), id };
        (Some(leading), Following(receiver))
    }

    /// How many requests are in flight.
    pub fn len(&self) -> usize {
        self.running.lock().len()
    }

    /// Nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone> Default for InFlight<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone> Leading<T> {
    /// Ends the request for everyone who waits.
    pub fn finish(mut self, outcome: T) {
        let running = self.running.take();
        let mut waiting = running.and_then(|running| running.lock().remove(&self.id)).unwrap_or_default();
        let last = waiting.pop();
        for one in waiting {
            // Whoever waited may have gone.
            drop(one.send(outcome.clone()));
        }
        if let Some(last) = last {
            drop(last.send(outcome));
        }
    }
}

impl<T> Drop for Leading<T> {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.lock().remove(&self.id);
        }
    }
}

impl<T> Following<T> {
    /// Waits for the outcome; `None` when whoever ran the request panicked.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing: the request runs on.
    pub async fn outcome(self) -> Option<T> {
        self.0.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_duplicate_gets_the_outcome_of_the_first() {
        let inflight = InFlight::new();
        let id = RequestId([1; 16]);
        let (leading, first) = inflight.enter(id);
        let (none, second) = inflight.enter(id);
        assert!(none.is_none());
        leading.unwrap().finish(7);
        assert_eq!((first.outcome().await, second.outcome().await), (Some(7), Some(7)));
        assert!(inflight.is_empty());
        assert!(inflight.enter(id).0.is_some(), "a finished request can run again");
    }

    #[tokio::test]
    async fn an_abandoned_request_is_told_to_those_who_wait() {
        let inflight = InFlight::<u8>::new();
        let (leading, follower) = inflight.enter(RequestId([1; 16]));
        drop(leading);
        assert_eq!(follower.outcome().await, None);
        assert!(inflight.is_empty());
    }
}
