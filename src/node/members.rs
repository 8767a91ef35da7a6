//! The node's members: who votes, who leads, who may be stopped.

use std::sync::Arc;

use keystead_raft::{
    AutopilotConfig, AutopilotState, BoxFuture, Replica, Safety, StepDownError, Verification,
};
use serde_json::{Map, Value};

use super::{Node, join::join_error};
use crate::core::{
    error::ApiError,
    member_ops::{AutopilotChange, MemberOps},
};

impl Node {
    fn leading(&self) -> Result<Arc<Replica>, ApiError> {
        Node::replica(self).ok_or(ApiError::Sealed)
    }

    /// Has this node step down before it loses its vote: the new leader then takes it away.
    async fn step_down_first(&self, replica: &Replica, node_id: &str) -> Result<(), ApiError> {
        let directory = replica.directory();
        let own = replica.incarnation();
        if directory.by_node_id(node_id).is_none_or(|member| member.incarnation != own) {
            return Ok(());
        }
        replica.check_removable(node_id).map_err(join_error)?;
        tracing::info!("this node hands leadership over before it loses its vote");
        replica.step_down().await.map_err(step_down_error)?;
        Err(ApiError::NoLeader)
    }
}

impl MemberOps for Node {
    fn node_id(&self) -> String {
        self.settings.node_id.clone()
    }

    fn own_address(&self) -> Map<String, Value> {
        Node::own_address(self)
    }

    fn step_down(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let replica = self.leading()?;
            replica.step_down().await.map_err(step_down_error)?;
            tracing::info!("this node stepped down");
            Ok(())
        })
    }

    fn remove_peer(&self, node_id: String) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let replica = self.leading()?;
            self.step_down_first(&replica, &node_id).await?;
            if replica.remove(&node_id).await.map_err(join_error)? {
                tracing::info!(node_id, "a member was removed");
            }
            Ok(())
        })
    }

    fn verify_members(&self, scrub: bool) -> BoxFuture<'_, Result<Verification, ApiError>> {
        Box::pin(async move {
            let verified = self.leading()?.verify(scrub).await;
            verified.map_err(|error| ApiError::Busy(format!("nothing was compared: {error}")))
        })
    }

    fn promote(&self, node_id: String) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            self.leading()?.promote(&node_id).await.map_err(join_error)?;
            tracing::info!(node_id, "a member is promoted as soon as it has caught up");
            Ok(())
        })
    }

    fn demote(&self, node_id: String) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let replica = self.leading()?;
            self.step_down_first(&replica, &node_id).await?;
            replica.demote(&node_id).await.map_err(join_error)?;
            tracing::info!(node_id, "a member was demoted");
            Ok(())
        })
    }

    fn autopilot_config(&self) -> Result<AutopilotConfig, ApiError> {
        Ok(self.leading()?.directory().autopilot.clone())
    }

    fn configure_autopilot(&self, change: AutopilotChange) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let configured = self.leading()?.configure_autopilot(change).await;
            configured.map_err(join_error)
        })
    }

    fn autopilot_state(&self) -> Result<AutopilotState, ApiError> {
        Ok(self.leading()?.autopilot_state())
    }

    fn safe_to_stop(&self, node_id: &str) -> Result<Option<Safety>, ApiError> {
        Ok(self.leading()?.safe_to_stop(node_id))
    }
}

fn step_down_error(error: StepDownError) -> ApiError {
    match error {
        StepDownError::NotLeader => ApiError::NoLeader,
        // Trying again by itself would help nobody, so this is no 5xx.
        StepDownError::NoHeir(_) => ApiError::invalid(error.to_string()),
    }
}
