//! The routing table: for every path, what may be asked of it, by whom, and which node answers.

use super::{
    path::RequestPath,
    request::Operation::{self, Delete, Help, List, Patch, Read, Update},
};

/// Which node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The node that was asked, whatever its state.
    Local,
    /// Any unsealed node, after it has made sure that it knows everything that was acknowledged.
    Linearizable,
    /// The leader; others forward.
    Leader,
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    None,
    /// Everybody; a token shows more.
    Optional,
    /// Who has a token whose policies allow it.
    Token,
    /// Who has `sudo` there.
    Root,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handler {
    /// `sys/init`.
    Init,
    /// `sys/seal-status`.
    SealStatus,
    /// `sys/seal-backend-status`.
    SealBackends,
    /// `sys/seal-backend-sync`.
    SealSync,
    /// `sys/unseal`.
    Unseal,
    /// `sys/verify-share`.
    VerifyShare,
    /// `sys/storage/raft/snapshot`, read.
    SnapshotSave,
    /// `sys/storage/raft/snapshot` and `sys/storage/raft/snapshot-force`, written.
    SnapshotRestore,
    /// `sys/storage/raft/snapshot-auto/*`.
    SnapshotAuto,
    /// `sys/storage/raft/verify`.
    RaftVerify,
    /// `sys/rotate/config`.
    RotationConfig,
    /// `sys/rekey/backup` and `sys/rekey/recovery-key-backup`.
    ShareBackup,
    /// `sys/unseal-members`.
    UnsealMembers,
    /// `sys/seal`.
    Seal,
    /// `sys/health`.
    Health,
    /// `sys/leader`.
    Leader,
    /// `sys/storage/raft/join`.
    RaftJoin,
    /// `sys/storage/raft/bootstrap/claim`.
    RaftClaim,
    /// `sys/storage/raft/bootstrap/epoch`.
    RaftEpoch,
    /// `sys/storage/raft/bootstrap/challenge`.
    RaftChallenge,
    /// `sys/storage/raft/bootstrap/answer`.
    RaftAnswer,
    /// `sys/storage/raft/remove-peer`.
    RemovePeer,
    /// `sys/storage/raft/bootstrap/address`.
    RaftAddress,
    /// `sys/storage/raft/promote`.
    Promote,
    /// `sys/storage/raft/demote`.
    Demote,
    /// `sys/step-down`.
    StepDown,
    /// `sys/storage/raft/autopilot/configuration`.
    AutopilotConfig,
    /// `sys/storage/raft/autopilot/state`.
    AutopilotState,
    /// `sys/ha/safe-to-stop`.
    SafeToStop,
    /// `sys/storage/raft/configuration`.
    RaftConfiguration,
    /// `sys/metrics`.
    Metrics,
    /// `sys/key-status`.
    KeyStatus,
    /// `sys/mounts`.
    Mounts,
    /// `sys/mounts/<path>` and `sys/mounts/<path>/tune`.
    Mount,
    /// `sys/auth`.
    AuthMounts,
    /// `sys/auth/<path>` and `sys/auth/<path>/tune`.
    AuthMount,
    /// `sys/break-glass`.
    BreakGlass,
    /// `sys/break-glass/enable/*` and `sys/break-glass/disable/*`.
    BreakGlassChange,
    /// `sys/rekey/*` and `sys/rekey-recovery-key/*`.
    Rekey,
    /// `sys/generate-root/*`.
    GenerateRoot,
    /// `sys/rotate`.
    Rotate,
    /// `sys/remount`.
    Remount,
    /// `sys/remount/status/<id>`.
    RemountStatus,
    /// `sys/internal/ui/mounts`.
    VisibleMounts,
    /// `sys/internal/ui/mounts/<path>`.
    VisibleMount,
    /// `/health` and `/livez`: the process answers.
    Alive,
    /// `/ready` and `/readyz`: it answers requests for secrets.
    Ready,
    /// `sys/ha-status`.
    HaStatus,
    /// `sys/host-info`.
    HostInfo,
    /// `sys/version-history`.
    VersionHistory,
    /// `sys/config/state/sanitized`.
    Sanitized,
    /// `sys/in-flight-req`.
    InFlight,
    /// `sys/loggers` and `sys/loggers/<name>`.
    Loggers,
    /// `sys/tools/random` and what may stand below it.
    Random,
    /// `sys/tools/hash` and `sys/tools/hash/<algorithm>`.
    Hash,
    /// `sys/internal/ui/resultant-acl`.
    ResultantAcl,
    /// `sys/internal/ui/feature-flags`.
    FeatureFlags,
    /// `sys/internal/ui/namespaces`.
    VisibleNamespaces,
    /// `sys/internal/specs/openapi`.
    OpenApi,
    /// `sys/replication/status`.
    ReplicationStatus,
    /// Help about any path.
    Help,
    /// `auth/token/lookup-self`.
    LookupSelf,
    /// `auth/token/lookup`.
    Lookup,
    /// Whatever is mounted there.
    Engine,
    /// A path of the vault's own that does not exist.
    Unknown,
    /// A path that exists and does not know the operation.
    Unsupported,
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// The path; `*` at the end stands for one or more segments.
    pub pattern: &'static str,
    /// What may be asked.
    pub operations: &'static [Operation],
    /// What it does.
    pub handler: Handler,
    /// Who may ask.
    pub access: Access,
    /// Which node answers.
    pub place: Place,
    /// It answers without an envelope, and its errors are never wrapped.
    pub raw: bool,
}

const fn raw(pattern: &'static str, operations: &'static [Operation], handler: Handler) -> Route {
    Route { pattern, operations, handler, access: Access::None, place: Place::Local, raw: true }
}

const fn logical(
    pattern: &'static str,
    operations: &'static [Operation],
    handler: Handler,
    access: Access,
    place: Place,
) -> Route {
    Route { pattern, operations, handler, access, place, raw: false }
}

/// A step of what key holders agree to with their shares: the leader counts them.
const fn step(pattern: &'static str, operations: &'static [Operation], handler: Handler) -> Route {
    logical(pattern, operations, handler, Access::Optional, Place::Leader)
}

/// Every route but those of the mounts.
pub const ROUTES: &[Route] = &[
    raw("sys/init", &[Read, Update], Handler::Init),
    raw("sys/seal-status", &[Read], Handler::SealStatus),
    raw("sys/seal-backend-status", &[Read], Handler::SealBackends),
    raw("sys/unseal", &[Update], Handler::Unseal),
    raw("sys/unseal-members", &[Update], Handler::UnsealMembers),
    raw("sys/verify-share", &[Update], Handler::VerifyShare),
    raw("sys/health", &[Read], Handler::Health),
    raw("sys/leader", &[Read], Handler::Leader),
    raw("sys/livez", &[Read], Handler::Alive),
    raw("sys/readyz", &[Read], Handler::Ready),
    raw("sys/internal/ui/feature-flags", &[Read], Handler::FeatureFlags),
    raw("sys/storage/raft/join", &[Update], Handler::RaftJoin),
    raw("sys/storage/raft/bootstrap/address", &[Read], Handler::RaftAddress),
    raw("sys/storage/raft/bootstrap/claim", &[Update], Handler::RaftClaim),
    raw("sys/storage/raft/bootstrap/epoch", &[Read, Update], Handler::RaftEpoch),
    Route {
        pattern: "sys/seal",
        operations: &[Update],
        handler: Handler::Seal,
        access: Access::Root,
        place: Place::Local,
        raw: true,
    },
    logical(
        "sys/storage/raft/bootstrap/challenge",
        &[Update],
        Handler::RaftChallenge,
        Access::None,
        Place::Leader,
    ),
    logical("sys/storage/raft/bootstrap/answer", &[Update], Handler::RaftAnswer, Access::None, Place::Leader),
    logical(
        "sys/storage/raft/snapshot-auto/config",
        &[List],
        Handler::SnapshotAuto,
        Access::Root,
        Place::Linearizable,
    ),
    logical(
        "sys/storage/raft/snapshot-auto/config/",
        &[List],
        Handler::SnapshotAuto,
        Access::Root,
        Place::Linearizable,
    ),
    logical(
        "sys/storage/raft/snapshot-auto/config/*",
        &[Read],
        Handler::SnapshotAuto,
        Access::Root,
        Place::Linearizable,
    ),
    logical(
        "sys/storage/raft/snapshot-auto/config/*",
        &[Update, Delete],
        Handler::SnapshotAuto,
        Access::Root,
        Place::Leader,
    ),
    logical(
        "sys/storage/raft/snapshot-auto/status/*",
        &[Read],
        Handler::SnapshotAuto,
        Access::Root,
        Place::Linearizable,
    ),
    // Every node has all of it.
    logical("sys/storage/raft/snapshot", &[Read], Handler::SnapshotSave, Access::Root, Place::Linearizable),
    logical("sys/storage/raft/snapshot", &[Update], Handler::SnapshotRestore, Access::Root, Place::Leader),
    logical(
        "sys/storage/raft/snapshot-force",
        &[Update],
        Handler::SnapshotRestore,
        Access::Root,
        Place::Leader,
    ),
    // What the leader's tokens say counts: it is the leader that wraps.
    logical("sys/seal-backend-sync", &[Read, Update], Handler::SealSync, Access::Root, Place::Leader),
    logical("sys/storage/raft/remove-peer", &[Update], Handler::RemovePeer, Access::Root, Place::Leader),
    logical("sys/storage/raft/verify", &[Update], Handler::RaftVerify, Access::Root, Place::Leader),
    logical("sys/storage/raft/promote", &[Update], Handler::Promote, Access::Root, Place::Leader),
    logical("sys/storage/raft/demote", &[Update], Handler::Demote, Access::Root, Place::Leader),
    logical("sys/step-down", &[Update], Handler::StepDown, Access::Root, Place::Leader),
    logical(
        "sys/storage/raft/autopilot/configuration",
        &[Read],
        Handler::AutopilotConfig,
        Access::Token,
        Place::Linearizable,
    ),
    logical(
        "sys/storage/raft/autopilot/configuration",
        &[Update],
        Handler::AutopilotConfig,
        Access::Root,
        Place::Leader,
    ),
    // The leader knows how far the others are.
    logical(
        "sys/storage/raft/autopilot/state",
        &[Read],
        Handler::AutopilotState,
        Access::Token,
        Place::Leader,
    ),
    logical("sys/ha/safe-to-stop", &[Read], Handler::SafeToStop, Access::Token, Place::Leader),
    logical(
        "sys/storage/raft/configuration",
        &[Read],
        Handler::RaftConfiguration,
        Access::Token,
        Place::Linearizable,
    ),
    logical("sys/metrics", &[Read], Handler::Metrics, Access::Token, Place::Linearizable),
    logical("sys/key-status", &[Read], Handler::KeyStatus, Access::Token, Place::Linearizable),
    logical("sys/break-glass", &[Read], Handler::BreakGlass, Access::Token, Place::Linearizable),
    logical(
        "sys/break-glass/enable/init",
        &[Read, Update, Delete],
        Handler::BreakGlassChange,
        Access::Root,
        Place::Leader,
    ),
    logical(
        "sys/break-glass/enable/update",
        &[Update],
        Handler::BreakGlassChange,
        Access::Root,
        Place::Leader,
    ),
    logical(
        "sys/break-glass/disable/init",
        &[Read, Update, Delete],
        Handler::BreakGlassChange,
        Access::Root,
        Place::Leader,
    ),
    logical(
        "sys/break-glass/disable/update",
        &[Update],
        Handler::BreakGlassChange,
        Access::Root,
        Place::Leader,
    ),
    step("sys/rekey/init", &[Read, Update, Delete], Handler::Rekey),
    step("sys/rekey/update", &[Update], Handler::Rekey),
    step("sys/rekey/verify", &[Read, Update, Delete], Handler::Rekey),
    step("sys/rekey-recovery-key/init", &[Read, Update, Delete], Handler::Rekey),
    step("sys/rekey-recovery-key/update", &[Update], Handler::Rekey),
    step("sys/rekey-recovery-key/verify", &[Read, Update, Delete], Handler::Rekey),
    step("sys/generate-root/attempt", &[Read, Update, Delete], Handler::GenerateRoot),
    step("sys/generate-root/update", &[Update], Handler::GenerateRoot),
    logical("sys/rekey/backup", &[Read], Handler::ShareBackup, Access::Root, Place::Linearizable),
    logical("sys/rekey/backup", &[Delete], Handler::ShareBackup, Access::Root, Place::Leader),
    logical(
        "sys/rekey/recovery-key-backup",
        &[Read],
        Handler::ShareBackup,
        Access::Root,
        Place::Linearizable,
    ),
    logical("sys/rekey/recovery-key-backup", &[Delete], Handler::ShareBackup, Access::Root, Place::Leader),
    logical("sys/rotate", &[Update], Handler::Rotate, Access::Root, Place::Leader),
    logical("sys/rotate/config", &[Read], Handler::RotationConfig, Access::Root, Place::Linearizable),
    logical("sys/rotate/config", &[Update], Handler::RotationConfig, Access::Root, Place::Leader),
    logical("sys/mounts", &[Read], Handler::Mounts, Access::Token, Place::Linearizable),
    logical("sys/mounts/*", &[Read], Handler::Mount, Access::Token, Place::Linearizable),
    logical("sys/mounts/*", &[Update, Delete], Handler::Mount, Access::Token, Place::Leader),
    logical("sys/auth", &[Read], Handler::AuthMounts, Access::Token, Place::Linearizable),
    logical("sys/auth/*", &[Read], Handler::AuthMount, Access::Token, Place::Linearizable),
    logical("sys/auth/*", &[Update, Delete], Handler::AuthMount, Access::Root, Place::Leader),
    logical("sys/remount", &[Update], Handler::Remount, Access::Root, Place::Leader),
    logical("sys/remount/status/*", &[Read], Handler::RemountStatus, Access::Token, Place::Linearizable),
    // The leader hears of all the others most often.
    logical("sys/ha-status", &[Read], Handler::HaStatus, Access::Token, Place::Leader),
    logical("sys/host-info", &[Read], Handler::HostInfo, Access::Token, Place::Local),
    logical("sys/version-history", &[List], Handler::VersionHistory, Access::Token, Place::Linearizable),
    logical("sys/version-history/", &[List], Handler::VersionHistory, Access::Token, Place::Linearizable),
    logical("sys/config/state/sanitized", &[Read], Handler::Sanitized, Access::Token, Place::Local),
    logical("sys/in-flight-req", &[Read], Handler::InFlight, Access::Token, Place::Local),
    logical("sys/loggers", &[Read, Update, Delete], Handler::Loggers, Access::Token, Place::Local),
    logical("sys/loggers/*", &[Read, Update, Delete], Handler::Loggers, Access::Token, Place::Local),
    logical("sys/tools/random", &[Update], Handler::Random, Access::Token, Place::Local),
    logical("sys/tools/random/*", &[Update], Handler::Random, Access::Token, Place::Local),
    logical("sys/tools/hash", &[Update], Handler::Hash, Access::Token, Place::Local),
    logical("sys/tools/hash/*", &[Update], Handler::Hash, Access::Token, Place::Local),
    logical(
        "sys/internal/ui/resultant-acl",
        &[Read],
        Handler::ResultantAcl,
        Access::Token,
        Place::Linearizable,
    ),
    logical(
        "sys/internal/ui/namespaces",
        &[Read],
        Handler::VisibleNamespaces,
        Access::Optional,
        Place::Linearizable,
    ),
    logical("sys/internal/specs/openapi", &[Read], Handler::OpenApi, Access::Optional, Place::Local),
    logical("sys/replication/status", &[Read], Handler::ReplicationStatus, Access::None, Place::Local),
    logical("sys/internal/ui/mounts", &[Read], Handler::VisibleMounts, Access::Optional, Place::Linearizable),
    logical("sys/internal/ui/mounts/*", &[Read], Handler::VisibleMount, Access::Token, Place::Linearizable),
    logical("auth/token/lookup-self", &[Read], Handler::LookupSelf, Access::Token, Place::Linearizable),
    logical("auth/token/lookup", &[Read, Update], Handler::Lookup, Access::Token, Place::Linearizable),
];

/// What is mounted: reads are answered anywhere, writes by the leader.
pub const MOUNTED: [Route; 2] = [
    logical("*", &[Read, List], Handler::Engine, Access::Token, Place::Linearizable),
    logical("*", &[Update, Patch, Delete], Handler::Engine, Access::Token, Place::Leader),
];

const UNKNOWN: Route =
    logical("*", &[Read, List, Update, Patch, Delete], Handler::Unknown, Access::Token, Place::Linearizable);

const HELP: Route = logical("*", &[Help], Handler::Help, Access::Token, Place::Linearizable);

/// The first segments of all paths that are the vault's own.
const OWN_AREAS: [&str; 2] = ["sys", "auth"];

/// Finds the route of a request. There always is one: what does not exist, too, is told to token holders only.
pub fn find(path: &RequestPath, operation: Operation) -> Route {
    if operation == Help {
        return HELP;
    }
    let path = path.as_str();
    let owned = path.split('/').next().is_some_and(|area| OWN_AREAS.contains(&area));
    if !owned {
        return MOUNTED[usize::from(operation.writes())];
    }
    let mut known = None;
    for route in ROUTES.iter().filter(|route| matches(route.pattern, path)) {
        if route.operations.contains(&operation) {
            return *route;
        }
        known = Some(route);
    }
    if let Some(route) = known {
        return Route { handler: Handler::Unsupported, place: Place::Linearizable, ..*route };
    }
    UNKNOWN
}

fn matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty()),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: &str, operation: Operation) -> (Handler, Place) {
        let route = find(&RequestPath::from_encoded(path).unwrap(), operation);
        (route.handler, route.place)
    }

    #[test]
    fn every_request_has_one_route() {
        for (path, operation, handler, place) in [
            ("sys/health", Read, Handler::Health, Place::Local),
            ("sys/health/", Read, Handler::Unknown, Place::Linearizable),
            ("sys/seal", Update, Handler::Seal, Place::Local),
            ("sys/mounts", Read, Handler::Mounts, Place::Linearizable),
            ("sys/mounts/", List, Handler::Unknown, Place::Linearizable),
            ("sys/mounts/a/b", Update, Handler::Mount, Place::Leader),
            ("sys/mounts/a", Read, Handler::Mount, Place::Linearizable),
            ("sys/mounts/a", Patch, Handler::Unsupported, Place::Linearizable),
            ("sys/nosuch", Update, Handler::Unknown, Place::Linearizable),
            ("sys", Read, Handler::Unknown, Place::Linearizable),
            ("system/x", Read, Handler::Engine, Place::Linearizable),
            ("secret/data/a", Read, Handler::Engine, Place::Linearizable),
            ("secret/data/a", Update, Handler::Engine, Place::Leader),
            ("secret/metadata/", List, Handler::Engine, Place::Linearizable),
            ("auth/token/lookup-self", Read, Handler::LookupSelf, Place::Linearizable),
            ("auth/userpass/login/x", Update, Handler::Unknown, Place::Linearizable),
            ("", Read, Handler::Engine, Place::Linearizable),
        ] {
            assert_eq!(route(path, operation), (handler, place), "{path} {operation:?}");
        }
    }

    #[test]
    fn every_route_lies_in_an_area_of_the_vault() {
        for route in ROUTES {
            assert!(OWN_AREAS.contains(&route.pattern.split('/').next().unwrap()), "{}", route.pattern);
        }
    }

    #[test]
    fn what_needs_no_token_is_listed_here() {
        let mut open: Vec<&str> =
            ROUTES.iter().filter(|route| route.access == Access::None).map(|route| route.pattern).collect();
        open.sort_unstable();
        assert_eq!(
            open,
            [
                "sys/health",
                "sys/init",
                "sys/internal/ui/feature-flags",
                "sys/leader",
                "sys/livez",
                "sys/readyz",
                "sys/replication/status",
                "sys/seal-backend-status",
                "sys/seal-status",
                "sys/storage/raft/bootstrap/address",
                "sys/storage/raft/bootstrap/answer",
                "sys/storage/raft/bootstrap/challenge",
                "sys/storage/raft/bootstrap/claim",
                "sys/storage/raft/bootstrap/epoch",
                "sys/storage/raft/join",
                "sys/unseal",
                "sys/unseal-members",
                "sys/verify-share",
            ]
        );
    }

    #[test]
    fn writes_of_the_state_go_to_the_leader() {
        for route in ROUTES.iter().chain(&MOUNTED) {
            let changes = route.operations.iter().any(|operation| operation.writes());
            let local = route.place == Place::Local || route.handler == Handler::Lookup;
            let asks =
                matches!(route.handler, Handler::HaStatus | Handler::AutopilotState | Handler::SafeToStop);
            let leads = route.place == Place::Leader && !asks;
            assert_eq!(changes && !local, leads, "{}", route.pattern);
        }
    }
}
