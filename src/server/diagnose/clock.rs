//! The machine's clock, beside those of the nodes it would join.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keystead_tls::ClientTls;
use zeroize::Zeroizing;

use super::{Check, Status};
use crate::cli::time::Timestamp;
use crate::client::{Address, Client, ClientConfig, Scheme};
use crate::config::{RetryJoin, ServerConfig, StorageConfig};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// From here on a leader raises an alarm; `Date` headers are a second coarse, and so is this.
const APART_S: i64 = 5;
/// More nodes say nothing more.
const MOST_ASKED: usize = 8;

pub(super) async fn check(config: &ServerConfig) -> Check {
    Check::group("Check Clock", vec![plausible(now()), beside_others(config).await])
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Nobody runs a program before it was made.
fn plausible(now: i64) -> Check {
    const NAME: &str = "Check System Time";
    let built = Timestamp::parse(crate::core::BUILD_DATE).map_or(0, |built| built.unix());
    let shown = Timestamp::of_unix(now).whole_seconds();
    if now < built {
        let message = format!("it is {shown}, before this program was made");
        return Check::fail(NAME, message, "set the clock, and let NTP (chrony, systemd-timesyncd) keep it");
    }
    Check::ok(NAME, shown)
}

async fn beside_others(config: &ServerConfig) -> Check {
    const NAME: &str = "Compare With Other Nodes";
    let StorageConfig::Raft(raft) = &config.storage else {
        return Check::skip(NAME, "this node has no others");
    };
    let stanzas = raft.retry_join.iter().filter(|stanza| !stanza.leader_api_addr.is_empty());
    let asked =
        stanzas.take(MOST_ASKED).map(|stanza| async { (&stanza.leader_api_addr, ahead_by(stanza).await) });
    let answers = futures_util::future::join_all(asked).await;
    let heard: Vec<Check> =
        answers.iter().filter_map(|(address, ahead)| ahead.map(|ahead| judged(address, ahead))).collect();
    if answers.is_empty() {
        return Check::skip(NAME, "no retry_join names another node");
    }
    if heard.is_empty() {
        return Check::skip(NAME, "no node of retry_join answers");
    }
    Check::group(NAME, heard)
}

fn judged(address: &str, ahead_s: i64) -> Check {
    let name = format!("Compare With {address}");
    if ahead_s.abs() <= APART_S {
        return Check::new(&name, Status::Ok, "the clocks agree to a few seconds".to_owned(), String::new());
    }
    let direction = if ahead_s > 0 { "ahead" } else { "behind" };
    let message = format!("this clock is {} s {direction}", ahead_s.abs());
    Check::warn(&name, message, "let NTP (chrony, systemd-timesyncd) set the clocks of both machines")
}

/// By how many seconds this clock is ahead of the node's; `None` if the node does not say.
async fn ahead_by(stanza: &RetryJoin) -> Option<i64> {
    let address = Address::parse(&stanza.leader_api_addr).ok()?;
    let mut config = ClientConfig::new(address);
    config.timeout = PATIENCE;
    config.follow_redirects = false;
    config.tls_server_name = stanza.leader_tls_servername.clone();
    if config.address.scheme() == Scheme::Https {
        config.tls = Some(tls(stanza)?.build().ok()?);
    }
    let client = Client::new(config).ok()?;
    let asked = Instant::now();
    let answer = client.request("GET", "/v1/sys/health", None, &[]).await.ok()?;
    let half_way = i64::try_from(asked.elapsed().as_secs() / 2).ok()?;
    let date = Timestamp::parse_http(answer.headers.get(http::header::DATE)?.to_str().ok()?)?;
    Some(now() - half_way - date.unix())
}

/// How the node is reached when joining.
fn tls(stanza: &RetryJoin) -> Option<ClientTls> {
    let read = |inline: &Option<String>, file: &Option<std::path::PathBuf>| match (inline, file) {
        (Some(pem), _) => Some(Some(pem.clone())),
        (None, Some(path)) => std::fs::read_to_string(path).ok().map(Some),
        (None, None) => Some(None),
    };
    let key = match (&stanza.leader_client_key, &stanza.leader_client_key_file) {
        (Some(key), _) => Some(Zeroizing::new(key.expose().to_owned())),
        (None, Some(path)) => Some(Zeroizing::new(std::fs::read_to_string(path).ok()?)),
        (None, None) => None,
    };
    Some(ClientTls {
        ca_file: stanza.leader_ca_cert_file.clone(),
        ca_pem: stanza.leader_ca_cert.clone(),
        client_cert_pem: read(&stanza.leader_client_cert, &stanza.leader_client_cert_file)?,
        client_key_pem: key,
        server_name: stanza.leader_tls_servername.clone(),
        ..ClientTls::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_before_the_build_fails_and_one_apart_warns() {
        assert_eq!(plausible(-1).status, Status::Fail);
        assert_eq!(plausible(now()).status, Status::Ok);
        assert_eq!((judged("a", 5).status, judged("a", -6).status), (Status::Ok, Status::Warn));
        assert!(judged("a", -60).message.contains("60 s behind"));
    }
}
