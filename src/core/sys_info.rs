//! Endpoints about the server itself: its members, its log, its routes, what it is doing.

use serde_json::{Map, Value, json};

use super::{
    BUILD_DATE, Core, VERSION,
    error::ApiError,
    fields::Fields,
    gojson, host,
    node_ops::Unsealed,
    request::{Operation, Request},
    response::Answer,
    router::{Handler, ROUTES},
    sys_tools,
    time::rfc3339,
    txn::Transaction,
};

impl Core {
    /// Answers a request to one of these endpoints, or `None` when it is not one of them.
    pub(super) fn answer_info(
        &self,
        handler: Handler,
        request: &Request,
        unsealed: &Unsealed,
        txn: &mut Transaction,
    ) -> Option<Result<Answer, ApiError>> {
        let below = |prefix: &str| {
            request.path.as_str().strip_prefix(prefix).unwrap_or_default().trim_start_matches('/')
        };
        let fields = Fields(&request.data);
        Some(match handler {
            Handler::HaStatus => self.ha_status(),
            Handler::HostInfo => Ok(Answer::data(host::info())),
            Handler::VersionHistory => self.version_history(),
            Handler::Sanitized => Ok(Answer::data(self.settings.sanitized.clone())),
            Handler::InFlight => Ok(Answer::Raw(gojson::to_string(&self.running.to_json()))),
            Handler::Loggers => self.loggers(below("sys/loggers"), request.operation, &fields),
            Handler::Random => sys_tools::random(below("sys/tools/random"), &fields),
            Handler::Hash => sys_tools::hash(below("sys/tools/hash"), &fields),
            Handler::ResultantAcl => Ok(resultant_acl()),
            Handler::VisibleNamespaces => {
                Ok(Answer::data(Map::from_iter([("keys".to_owned(), Value::Array(Vec::new()))])))
            }
            Handler::ReplicationStatus => Ok(Answer::duplicated(Map::from_iter([
                ("dr".to_owned(), json!({ "mode": "disabled" })),
                ("performance".to_owned(), json!({ "mode": "disabled" })),
            ]))),
            Handler::OpenApi => Ok(Answer::Raw(gojson::to_string(&openapi(None)))),
            Handler::Help => self.help(request.path.as_str(), unsealed, txn),
            _ => return None,
        })
    }

    fn ha_status(&self) -> Result<Answer, ApiError> {
        let mut nodes = self.node().ha_nodes()?;
        nodes.sort_by(|a, b| a.api_address.cmp(&b.api_address));
        let nodes: Value = nodes
            .into_iter()
            .map(|node| {
                json!({
                    "active_node": node.active,
                    "api_address": node.api_address,
                    "cluster_address": node.cluster_address,
                    "hostname": node.name,
                    "last_echo": node.last_echo_ms.map(rfc3339),
                    "upgrade_version": node.version,
                    "version": node.version,
                })
            })
            .collect();
        Ok(Answer::duplicated(Map::from_iter([("nodes".to_owned(), nodes)])))
    }

    fn version_history(&self) -> Result<Answer, ApiError> {
        let installed_ms = self.node().key_status().ok_or(ApiError::Sealed)?.first_installed_ms;
        let info = json!({ VERSION: {
            "build_date": BUILD_DATE,
            "previous_version": null,
            "timestamp_installed": rfc3339(installed_ms),
        } });
        Ok(Answer::data(Map::from_iter([
            ("key_info".to_owned(), info),
            ("keys".to_owned(), json!([VERSION])),
        ])))
    }

    /// The levels of this node's log. They are not replicated: who looks into one node wants that node's words.
    fn loggers(&self, name: &str, operation: Operation, fields: &Fields<'_>) -> Result<Answer, ApiError> {
        let name = Some(name).filter(|name| !name.is_empty());
        let levels = self.node().log_levels();
        if let Some(name) = name
            && !levels.iter().any(|(known, _)| known == name)
        {
            return Err(match operation {
                Operation::Read => ApiError::NotFound,
                _ => ApiError::invalid("logger not found; GET sys/loggers lists them"),
            });
        }
        match operation {
            Operation::Read => {
                let shown = levels.into_iter().filter(|(known, _)| name.is_none_or(|name| name == known));
                Ok(Answer::data(shown.map(|(name, level)| (name, Value::from(level))).collect()))
            }
            Operation::Update => {
                let level = fields.text("level")?.ok_or_else(|| ApiError::invalid("level is required"))?;
                if level.is_empty() {
                    return Err(ApiError::invalid("level is empty"));
                }
                self.node().set_log_level(name, Some(&level)).map_err(|_| {
                    ApiError::invalid("invalid level provided: use trace, debug, info, warn or error")
                })?;
                Ok(Answer::NoContent)
            }
            Operation::Delete => {
                let reset = self.node().set_log_level(name, None);
                reset.map(|()| Answer::NoContent).map_err(ApiError::invalid)
            }
            _ => Err(ApiError::UnsupportedOperation { authenticated: true }),
        }
    }

    /// What can be done with a path, for people.
    fn help(&self, path: &str, unsealed: &Unsealed, txn: &mut Transaction) -> Result<Answer, ApiError> {
        let trimmed = path.trim_end_matches('/');
        let routes: Vec<_> = ROUTES.iter().filter(|route| helps(route.pattern, trimmed)).collect();
        let text = if routes.is_empty() {
            let table = self.mounts().table(&unsealed.barrier, txn)?;
            let (mount, _) = table.route(path).ok_or_else(|| ApiError::NoRoute(path.to_owned()))?;
            format!(
                "Request:        {trimmed}\nMount:          {} ({})\n\n{}",
                mount.path,
                mount.type_name,
                crate::engines::help(mount)
            )
        } else {
            let lines = routes.iter().map(|route| {
                let operations: Vec<&str> = route.operations.iter().map(|op| op.name()).collect();
                format!("    /{}\n        {}\n", route.pattern, operations.join(", "))
            });
            format!("Request:        {trimmed}\n\n## PATHS\n\n{}", lines.collect::<String>())
        };
        let document = json!({ "help": text, "openapi": openapi(Some(trimmed)), "see_also": null });
        Ok(Answer::Raw(gojson::to_string(&document)))
    }
}

/// Whether help about `path` speaks of a route: it is the route, or the route is below it.
fn helps(pattern: &str, path: &str) -> bool {
    let pattern = pattern.trim_end_matches('/');
    match pattern.strip_suffix("/*") {
        Some(prefix)
            if path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) =>
        {
            true
        }
        _ => pattern == path || pattern.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')),
    }
}

/// What the caller may do. There are only root tokens so far.
fn resultant_acl() -> Answer {
    Answer::data(Map::from_iter([
        ("chroot_namespace".to_owned(), "".into()),
        ("exact_paths".to_owned(), json!({})),
        ("glob_paths".to_owned(), json!({})),
        ("root".to_owned(), true.into()),
    ]))
}

/// The vault's own routes as an OpenAPI document, or those that help about one path speaks of.
fn openapi(about: Option<&str>) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES.iter().filter(|route| about.is_none_or(|path| helps(route.pattern, path))) {
        let pattern = route.pattern.trim_end_matches('/');
        let name = format!("/{}", pattern.replace('*', "{path}"));
        let entry = paths.entry(name).or_insert_with(|| json!({}));
        if pattern.ends_with('*') {
            entry["parameters"] = json!([{
                "in": "path", "name": "path", "required": true, "schema": { "type": "string" },
            }]);
        }
        for operation in route.operations {
            let (method, code) = match operation {
                Operation::Read | Operation::List | Operation::Help => ("get", "200"),
                Operation::Update => ("post", "200"),
                Operation::Patch => ("patch", "200"),
                Operation::Delete => ("delete", "204"),
            };
            entry[method] = json!({ "responses": { code: { "description": "OK" } } });
        }
    }
    json!({
        "info": {
            "description": "HTTP API of Keystead, compatible with Vault's.",
            "license": { "name": "Apache-2.0" },
            "title": "Keystead API",
            "version": VERSION,
        },
        "openapi": "3.0.2",
        "paths": paths,
    })
}

/// The list of feature flags that the interface of clients asks for: there are none.
pub(super) fn feature_flags() -> Answer {
    Answer::Raw(gojson::to_string(&json!({ "feature_flags": [] })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_speaks_of_a_path_and_what_is_below_it() {
        for (pattern, path, helps_it) in [
            ("sys/mounts/*", "sys/mounts/secret", true),
            ("sys/mounts/*", "sys/mounts", true),
            ("sys/mounts", "sys", true),
            ("sys/mounts", "sys/mount", false),
            ("sys/mounts", "sys/mounts/secret", false),
            ("sys/version-history/", "sys/version-history", true),
        ] {
            assert_eq!(helps(pattern, path), helps_it, "{pattern} {path}");
        }
    }

    #[test]
    fn every_route_is_in_the_openapi_document() {
        let document = openapi(None);
        assert!(document["paths"]["/sys/mounts/{path}"]["post"].is_object());
        assert!(document["paths"]["/sys/mounts/{path}"]["get"].is_object());
        assert!(document["paths"]["/sys/health"]["get"].is_object());
        assert_eq!(openapi(Some("sys/health"))["paths"].as_object().unwrap().len(), 1);
    }
}
