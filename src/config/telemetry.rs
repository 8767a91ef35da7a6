//! The `telemetry` block.

use std::time::Duration;

use super::error::{ConfigError, ConfigWarning};
use super::section::{Keys, Section, Use};

use Use::{InEffect, NotYet};

/// The `telemetry` block: how metrics are named, kept and sent.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryConfig {
    /// How long Vault keeps a metric that nobody updates. Here metrics are kept as long as the server runs.
    pub prometheus_retention_time: Duration,
    /// Leave the host's name out of metric names.
    pub disable_hostname: bool,
    /// Give the host's name as a label.
    pub enable_hostname_label: bool,
    /// What metric names begin with.
    pub metrics_prefix: Option<String>,
    /// How often usage is counted.
    pub usage_gauge_period: Duration,
    /// How many labels a usage metric may have.
    pub maximum_gauge_cardinality: u64,
    /// Metric name prefixes to allow (`+prefix`) or block (`-prefix`).
    pub prefix_filter: Vec<String>,
    /// Whether metrics are allowed that no filter names.
    pub filter_default: bool,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            prometheus_retention_time: Duration::from_secs(24 * 3600),
            disable_hostname: false,
            enable_hostname_label: false,
            metrics_prefix: None,
            usage_gauge_period: Duration::from_secs(600),
            maximum_gauge_cardinality: 500,
            prefix_filter: Vec::new(),
            filter_default: true,
        }
    }
}

pub(super) const KEYS: Keys = &[
    ("prometheus_retention_time", InEffect),
    ("disable_hostname", InEffect),
    ("enable_hostname_label", NotYet),
    ("metrics_prefix", NotYet),
    ("usage_gauge_period", NotYet),
    ("maximum_gauge_cardinality", NotYet),
    ("prefix_filter", NotYet),
    ("filter_default", NotYet),
    ("lease_metrics_epsilon", NotYet),
    ("num_lease_metrics_buckets", NotYet),
    ("add_lease_metrics_namespace_labels", NotYet),
    ("rollback_metrics_include_mount_point", NotYet),
    ("add_mount_point_rollback_metrics", NotYet),
    ("statsite_address", NotYet),
    ("statsd_address", NotYet),
    ("dogstatsd_addr", NotYet),
    ("dogstatsd_tags", NotYet),
    ("circonus_api_token", NotYet),
    ("circonus_api_app", NotYet),
    ("circonus_api_url", NotYet),
    ("circonus_submission_interval", NotYet),
    ("circonus_submission_url", NotYet),
    ("circonus_check_id", NotYet),
    ("circonus_check_force_metric_activation", NotYet),
    ("circonus_check_instance_id", NotYet),
    ("circonus_check_search_tag", NotYet),
    ("circonus_check_display_name", NotYet),
    ("circonus_check_tags", NotYet),
    ("circonus_broker_id", NotYet),
    ("circonus_broker_select_tag", NotYet),
    ("stackdriver_project_id", NotYet),
    ("stackdriver_location", NotYet),
    ("stackdriver_namespace", NotYet),
    ("stackdriver_debug_logs", NotYet),
];

/// Reads the block under `telemetry` of the top level, or the defaults.
pub(super) fn read(
    server: &Section<'_>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<TelemetryConfig, ConfigError> {
    let default = TelemetryConfig::default();
    let Some(block) = server.block("telemetry")? else { return Ok(default) };
    let section = block.open("telemetry", &[KEYS], warnings)?;
    let prometheus_retention_time = section.duration("prometheus_retention_time")?;
    Ok(TelemetryConfig {
        prometheus_retention_time: prometheus_retention_time.unwrap_or(default.prometheus_retention_time),
        disable_hostname: section.boolean("disable_hostname")?.unwrap_or(false),
        enable_hostname_label: section.boolean("enable_hostname_label")?.unwrap_or(false),
        metrics_prefix: section.string("metrics_prefix")?,
        usage_gauge_period: section.duration("usage_gauge_period")?.unwrap_or(default.usage_gauge_period),
        maximum_gauge_cardinality: section
            .whole("maximum_gauge_cardinality")?
            .unwrap_or(default.maximum_gauge_cardinality),
        prefix_filter: section.strings("prefix_filter")?,
        filter_default: section.boolean("filter_default")?.unwrap_or(true),
    })
}
