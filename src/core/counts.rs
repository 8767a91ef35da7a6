//! What is counted of every request, with the handles kept: finding them by name and labels costs more than
//! counting.

use std::time::Duration;

use metrics::{Counter, Histogram};

use super::request::Operation;

/// Every operation, in the order of their counters.
const OPERATIONS: [Operation; 6] = [
    Operation::Read,
    Operation::List,
    Operation::Update,
    Operation::Patch,
    Operation::Delete,
    Operation::Help,
];

/// Handles of the metrics of requests.
pub(super) struct Counts {
    milliseconds: Histogram,
    /// Of each operation: errors, then successes.
    requests: [[Counter; 2]; OPERATIONS.len()],
}

impl Counts {
    /// To be made once the recorder is installed.
    pub fn new() -> Self {
        let requests = OPERATIONS.map(|operation| {
            ["error", "ok"].map(|outcome| {
                metrics::counter!("keystead_core_requests_total", "operation" => operation.name(),
                    "outcome" => outcome)
            })
        });
        Self { milliseconds: metrics::histogram!("vault_core_handle_request"), requests }
    }

    /// Counts one request.
    pub fn request(&self, operation: Operation, ok: bool, elapsed: Duration) {
        self.milliseconds.record(elapsed.as_secs_f64() * 1_000.0);
        let at = OPERATIONS.iter().position(|known| *known == operation);
        let counters = &self.requests[at.expect("every operation is listed")];
        counters[usize::from(ok)].increment(1);
    }
}
