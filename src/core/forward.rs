//! Where a write runs: here if this node leads, on the leader otherwise, and on the next leader if that one is
//! lost, always under the same id, so that it is executed once and answered once.

use std::sync::Arc;

use bincode::{Decode, Encode};
use bytes::Bytes;
use keystead_raft::ForwardError;
use tokio::time::Instant;

use super::{
    Core, codec,
    error::ApiError,
    leader::Led,
    pause,
    request::Request,
    response::{Answer, Response},
    router::{self, Place, Route},
};

/// What a leader says to a node that has forwarded a request.
#[derive(Encode, Decode)]
enum ForwardReply {
    /// An encoded [`Response`].
    Answered(Vec<u8>),
    NotLeader,
    Unknown,
}

impl Core {
    /// Brings a write to whoever leads, through elections and lost connections.
    ///
    /// # Errors
    /// [`ApiError::NoLeader`] when nobody was found to lead in time and nothing was executed;
    /// [`ApiError::OutcomeUnknown`] when something may have been and nobody can say.
    pub(super) async fn lead_or_forward(
        self: &Arc<Self>,
        mut request: Request,
        route: &Route,
    ) -> Result<Answer, ApiError> {
        let (_, replica) = self.open()?;
        request.base_index = replica.state().applied().log_id.map_or(0, |id| id.index);
        let mut request = Arc::new(request);
        let mut deadline = Instant::now() + self.settings.election_wait;
        loop {
            let (_, replica) = match self.open() {
                Ok(open) => open,
                Err(_) if request.retry => return Err(ApiError::OutcomeUnknown),
                Err(error) => return Err(error),
            };
            let leadership = replica.leadership().borrow().clone();
            let led = match leadership.leader {
                _ if leadership.is_self => self.lead(Arc::clone(&request), route).await,
                Some(leader) if request.no_forward => {
                    let location = format!("{}{}", leader.api_addr.trim_end_matches('/'), request.location);
                    return Ok(Answer::Redirect { location });
                }
                Some(_) => {
                    let frame = Bytes::from(request.encode()?);
                    match replica.forward(frame, self.settings.forward_deadline).await {
                        Ok(reply) => decode_reply(&reply)?,
                        Err(ForwardError::Lost(_)) => Led::Unknown,
                        Err(ForwardError::NoLeader | ForwardError::NotSent(_) | ForwardError::Refused(_)) => {
                            Led::NotLeader
                        }
                    }
                }
                None => Led::NotLeader,
            };
            match led {
                // A leader that did nothing this time says nothing about the attempt before.
                Led::Answered(Err(error)) if request.retry && error.says_nothing_was_done() => {}
                Led::Answered(result) => return result,
                Led::NotLeader => {}
                Led::Unknown => {
                    metrics::counter!("keystead_core_unknown_outcomes_total").increment(1);
                    if !request.retry {
                        deadline = Instant::now() + self.settings.unknown_wait;
                        request = Arc::new(again(&request)?);
                    }
                }
            }
            if Instant::now() >= deadline {
                let unknown = request.retry && request.operation.writes();
                return Err(if unknown { ApiError::OutcomeUnknown } else { ApiError::NoLeader });
            }
            pause(&*replica, deadline).await;
        }
    }

    /// Answers a request that another node has forwarded over an open channel; `peer` names it for the log.
    ///
    /// The bytes that go back say whether it was answered, certainly not executed, or perhaps.
    ///
    /// # Cancel safety
    /// The request runs on, on the vault's own runtime.
    pub async fn handle_forwarded(self: &Arc<Self>, frame: Bytes, peer: &str) -> Bytes {
        let (core, peer) = (Arc::clone(self), peer.to_owned());
        let reply = self.runtime.spawn(async move { core.execute_forwarded(&frame, &peer).await }).await;
        // Neither a panic nor an answer that cannot be encoded says that nothing was executed.
        let reply = reply.unwrap_or(ForwardReply::Unknown);
        Bytes::from(codec::encode(&reply).unwrap_or_default())
    }

    async fn execute_forwarded(self: &Arc<Self>, frame: &[u8], peer: &str) -> ForwardReply {
        let reply = match Request::decode(frame) {
            Ok(request) => {
                let id = request.id;
                let route = router::find(&request.path, request.operation);
                let led = if route.place == Place::Leader {
                    self.lead(Arc::new(request), &route).await
                } else {
                    tracing::warn!(peer, "a peer forwarded a request that it should have answered itself");
                    Led::Answered(Err(ApiError::UnsupportedOperation { authenticated: false }))
                };
                match led {
                    Led::Answered(result) => Response { id, result }.encode().map(ForwardReply::Answered),
                    Led::NotLeader => Ok(ForwardReply::NotLeader),
                    Led::Unknown => Ok(ForwardReply::Unknown),
                }
            }
            Err(error) => {
                tracing::warn!(peer, "a forwarded request could not be read");
                let response = Response { id: keystead_storage::RequestId::NONE, result: Err(error) };
                response.encode().map(ForwardReply::Answered)
            }
        };
        reply.unwrap_or(ForwardReply::Unknown)
    }
}

/// The same request as an attempt after one that may have been executed.
fn again(request: &Request) -> Result<Request, ApiError> {
    let mut request = Request::decode(&request.encode()?)?;
    request.retry = true;
    Ok(request)
}

fn decode_reply(reply: &[u8]) -> Result<Led, ApiError> {
    match codec::decode(reply) {
        Ok(ForwardReply::Answered(bytes)) => Ok(Led::Answered(Response::decode(&bytes)?.result)),
        Ok(ForwardReply::NotLeader) => Ok(Led::NotLeader),
        // A reply that cannot be read came from a leader that may have done everything before.
        Ok(ForwardReply::Unknown) | Err(_) => Ok(Led::Unknown),
    }
}
