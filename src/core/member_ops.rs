//! What the request path needs of the node for its members: who votes, who leads, who may be stopped.

use keystead_raft::{AutopilotConfig, AutopilotState, BoxFuture, JoinError, Safety, Verification};
use serde_json::{Map, Value};

use super::error::ApiError;

/// What a client wants to have changed of autopilot's configuration.
pub type AutopilotChange = Box<dyn Fn(&mut AutopilotConfig) -> Result<(), JoinError> + Send + Sync>;

/// The node, as requests about its members see it. What changes anything is asked of the leader;
/// [`ApiError::NoLeader`] says that another node leads by now and nothing was done.
pub trait MemberOps: Send + Sync + 'static {
    /// The operator's name of this node's place.
    fn node_id(&self) -> String;
    /// `sys/storage/raft/bootstrap/address`: where this node's cluster port is.
    fn own_address(&self) -> Map<String, Value>;
    /// Hands leadership to another node.
    ///
    /// # Errors
    /// When nobody can take over, with what is wrong with each.
    fn step_down(&self) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Removes a member. Removing one that is not there succeeds.
    fn remove_peer(&self, node_id: String) -> BoxFuture<'_, Result<(), ApiError>>;
    /// What the states of all members come to at one entry; with `scrub` each reads all of its own before.
    fn verify_members(&self, scrub: bool) -> BoxFuture<'_, Result<Verification, ApiError>>;
    /// Gives a member a vote.
    fn promote(&self, node_id: String) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Takes a member's vote.
    fn demote(&self, node_id: String) -> BoxFuture<'_, Result<(), ApiError>>;
    /// Autopilot's configuration, as this node has applied it.
    ///
    /// # Errors
    /// [`ApiError::Sealed`] before this node belongs to a cluster.
    fn autopilot_config(&self) -> Result<AutopilotConfig, ApiError>;
    /// Changes it.
    fn configure_autopilot(&self, change: AutopilotChange) -> BoxFuture<'_, Result<(), ApiError>>;
    /// How the members do.
    ///
    /// # Errors
    /// [`ApiError::Sealed`] before this node belongs to a cluster.
    fn autopilot_state(&self) -> Result<AutopilotState, ApiError>;
    /// Whether a member may be stopped; `None` if there is none of that name.
    ///
    /// # Errors
    /// [`ApiError::Sealed`] before this node belongs to a cluster.
    fn safe_to_stop(&self, node_id: &str) -> Result<Option<Safety>, ApiError>;
}
