//! The requests that this node is answering now, for `sys/in-flight-req`.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{request::Request, time::rfc3339};
use crate::barrier::MountId;

/// Requests of which is known at a time; what is more runs unseen.
const MAX_SHOWN: usize = 10_000;

/// The requests in progress.
#[derive(Default)]
pub(super) struct RunningRequests(Arc<Mutex<BTreeMap<[u8; 16], Running>>>);

struct Running {
    started_ms: u64,
    client_address: String,
    path: Box<str>,
    operation: &'static str,
}

/// Takes a request off the list when it is dropped.
pub(super) struct Entered {
    list: Arc<Mutex<BTreeMap<[u8; 16], Running>>>,
    id: [u8; 16],
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.list.lock().remove(&self.id);
    }
}

impl RunningRequests {
    /// Puts a request on the list for as long as the result lives.
    pub fn enter(&self, request: &Request) -> Entered {
        let entered = Entered { list: Arc::clone(&self.0), id: request.id.0 };
        let mut list = self.0.lock();
        if list.len() < MAX_SHOWN {
            list.insert(
                request.id.0,
                Running {
                    started_ms: keystead_raft::clock::wall_ms(),
                    client_address: request.client_address.clone(),
                    path: request.path.as_str().into(),
                    operation: request.operation.name(),
                },
            );
        }
        drop(list);
        entered
    }

    /// The document of `sys/in-flight-req`. Tokens are not part of it, so neither is whose request it is.
    pub fn to_json(&self) -> Value {
        let list = self.0.lock();
        let shown = list.iter().map(|(id, running)| {
            let document = json!({
                "client_id": "",
                "client_remote_address": running.client_address,
                "request_method": running.operation,
                "request_path": format!("/v1/{}", running.path),
                "start_time": rfc3339(running.started_ms),
            });
            (MountId(*id).to_string(), document)
        });
        Value::Object(shown.collect::<Map<_, _>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{path::RequestPath, request::Operation};

    #[test]
    fn a_request_is_shown_while_it_runs() {
        let list = RunningRequests::default();
        let path = RequestPath::from_encoded("secret/data/a").unwrap();
        let entered = list.enter(&Request::new(Operation::Update, path));
        let shown = list.to_json();
        let (id, request) = shown.as_object().unwrap().iter().next().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(
            (&request["request_path"], &request["request_method"]),
            (&"/v1/secret/data/a".into(), &"update".into())
        );
        drop(entered);
        assert_eq!(list.to_json(), json!({}));
    }
}
