//! `operator diagnose`: finds what would keep a node from starting or serving, before it is started.
//!
//! Nothing is changed: no directory is made, no file written, and a port is held for the moment of a bind only.

mod certificates;
mod clock;
mod cluster_certificate;
mod files;
mod limits;
mod ports;
mod seals;
mod storage;

use std::path::PathBuf;

use crate::config::{self, ListenerConfig, ServerConfig, StorageConfig, TcpListenerConfig};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// There was nothing to check, or no way to.
    Skip,
    /// Nothing to do.
    Ok,
    /// The node starts; something should be done all the same.
    Warn,
    /// The node does not start, or nobody reaches it.
    Fail,
}

/// One check, or several under one name.
#[derive(Debug, Clone)]
pub struct Check {
    /// What is looked at.
    pub name: String,
    /// How it ended; of several checks, the worst.
    pub status: Status,
    /// What was found; empty for several checks.
    pub message: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: String,
    /// The checks it consists of.
    pub children: Vec<Check>,
}

impl Check {
    fn ok(name: &str, message: impl Into<String>) -> Check {
        Check::new(name, Status::Ok, message.into(), String::new())
    }

    fn skip(name: &str, message: impl Into<String>) -> Check {
        Check::new(name, Status::Skip, message.into(), String::new())
    }

    fn warn(name: &str, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check::new(name, Status::Warn, message.into(), advice.into())
    }

    fn fail(name: &str, message: impl Into<String>, advice: impl Into<String>) -> Check {
        Check::new(name, Status::Fail, message.into(), advice.into())
    }

    fn new(name: &str, status: Status, message: String, advice: String) -> Check {
        Check { name: name.to_owned(), status, message, advice, children: Vec::new() }
    }

    /// Several checks; skipped if all of them are.
    fn group(name: &str, children: Vec<Check>) -> Check {
        let status = children.iter().map(|child| child.status).max().unwrap_or(Status::Skip);
        Check { name: name.to_owned(), status, message: String::new(), advice: String::new(), children }
    }
}

/// Checks what a server started with these files and this environment would meet.
///
/// `env` looks up a variable. The longest wait is that for silent nodes of `retry_join`, a few seconds.
pub async fn run(paths: &[PathBuf], env: impl Fn(&str) -> Option<String>) -> Check {
    const NAME: &str = "Keystead Diagnose";
    let config = match config::load_with_env(paths, env) {
        Ok(config) => config,
        Err(error) => {
            let advice = "correct this, then diagnose again: nothing else can be checked without it";
            let failed = Check::fail("Parse Configuration", error.to_string(), advice);
            return Check::group(NAME, vec![failed, limits::open_files()]);
        }
    };
    let directory = data_directory(&config);
    // What a running node holds is not free, and is not meant to be.
    let in_use = directory.is_some_and(storage::is_in_use);
    let mut children = vec![parsed(&config), files::check(paths, &config)];
    children.push(match directory {
        Some(path) => storage::check(path),
        None => Check::skip("Check Storage", "nothing is kept on a disk"),
    });
    children.push(ports::check(&config, in_use));
    children.push(certificates::check(&config));
    children.extend(seals::check(&config.seals, directory).await);
    children.push(clock::check(&config).await);
    children.push(limits::check(&config));
    Check::group(NAME, children)
}

fn parsed(config: &ServerConfig) -> Check {
    const NAME: &str = "Parse Configuration";
    if config.warnings.is_empty() {
        return Check::ok(
            NAME,
            format!("storage \"{}\" and the listeners are understood", config.storage.kind()),
        );
    }
    let warning = |warning: &config::ConfigWarning| {
        let name = format!("Check Key {}", warning.key);
        // The text says what to do.
        Check::warn(&name, warning.text.clone(), "")
    };
    Check::group(NAME, config.warnings.iter().map(warning).collect())
}

fn data_directory(config: &ServerConfig) -> Option<&std::path::Path> {
    match &config.storage {
        StorageConfig::Raft(raft) => Some(&raft.path),
        StorageConfig::File { path } => Some(path),
        StorageConfig::Inmem => None,
    }
}

fn tcp_listeners(config: &ServerConfig) -> impl Iterator<Item = &TcpListenerConfig> {
    config.listeners.iter().filter_map(|listener| match listener {
        ListenerConfig::Tcp(tcp) => Some(&**tcp),
        ListenerConfig::Unix(_) => None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // in a test, a panic is the report
mod tests {
    use std::net::TcpListener;
    use std::path::Path;

    use super::*;

    /// All checks, in the order they are shown, as (name, status).
    fn flat(check: &Check) -> Vec<(String, Status)> {
        let own = std::iter::once((check.name.clone(), check.status));
        own.chain(check.children.iter().flat_map(flat)).collect()
    }

    fn find<'a>(check: &'a Check, name: &str) -> &'a Check {
        fn search<'a>(check: &'a Check, name: &str) -> Option<&'a Check> {
            if check.name == name {
                return Some(check);
            }
            check.children.iter().find_map(|child| search(child, name))
        }
        search(check, name).unwrap_or_else(|| panic!("{name} among {:?}", flat(check)))
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    struct Node {
        directory: tempfile::TempDir,
        api: u16,
        cluster: u16,
        more: String,
        listener: String,
    }

    impl Node {
        fn new() -> Node {
            let directory = tempfile::tempdir().unwrap();
            let listener = "tls_disable = true".to_owned();
            Node { directory, api: free_port(), cluster: free_port(), more: String::new(), listener }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        async fn diagnose(&self) -> Check {
            use std::os::unix::fs::PermissionsExt;
            let file = self.path("config.hcl");
            let text = format!(
                "storage \"raft\" {{\n  path = \"{}\"\n  node_id = \"n1\"\n}}\n\
                 listener \"tcp\" {{\n  address = \"127.0.0.1:{}\"\n  cluster_address = \"127.0.0.1:{}\"\n  {}\n}}\n\
                 api_addr = \"https://127.0.0.1:{}\"\n{}\n",
                self.path("data").display(),
                self.api,
                self.cluster,
                self.listener,
                self.api,
                self.more
            );
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            run(&[file], |_| None).await
        }
    }

    #[tokio::test]
    async fn seals_are_exercised_and_nothing_is_made() {
        use std::os::unix::fs::PermissionsExt;
        let mut node = Node::new();
        let key = node.path("key");
        node.more = format!("seal \"file\" {{\n  path = \"{}\"\n}}", key.display());
        let found = node.diagnose().await;
        assert_eq!(find(&found, "Seal file").status, Status::Warn, "there is no key yet");
        assert!(!key.exists());
        std::fs::write(&key, "ab".repeat(32)).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(find(&node.diagnose().await, "Seal file").status, Status::Ok);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let open = node.diagnose().await;
        let open = find(&open, "Seal file");
        assert_eq!(open.status, Status::Fail);
        assert!(open.message.contains("chmod 600"), "{}", open.message);
    }

    #[tokio::test]
    async fn a_sound_node_fails_nothing_and_leaves_no_trace() {
        let node = Node::new();
        let report = node.diagnose().await;
        for name in ["Parse Configuration", "Check File Permissions", "Check Storage", "Check Ports"] {
            assert_eq!(find(&report, name).status, Status::Ok, "{report:?}");
        }
        assert!(report.status < Status::Fail, "{report:?}");
        assert!(!node.path("data").exists());
    }

    #[tokio::test]
    async fn a_taken_port_fails_and_is_named() {
        let node = Node::new();
        let _taken = TcpListener::bind(("127.0.0.1", node.cluster)).unwrap();
        let report = node.diagnose().await;
        let ports = find(&report, "Check Ports");
        assert_eq!(ports.status, Status::Fail);
        let failed: Vec<_> = ports.children.iter().filter(|child| child.status == Status::Fail).collect();
        assert!(failed.len() == 1 && failed[0].message.contains(&node.cluster.to_string()), "{ports:?}");
    }

    #[tokio::test]
    async fn a_running_node_explains_its_taken_ports() {
        let node = Node::new();
        let _running = keystead_storage::DataDir::open(node.path("data")).unwrap();
        let _api = TcpListener::bind(("127.0.0.1", node.api)).unwrap();
        let report = node.diagnose().await;
        assert_eq!(find(&report, "Check Data Directory Lock").status, Status::Warn);
        assert_eq!(find(&report, "Check Ports").status, Status::Warn, "{report:?}");
    }

    #[tokio::test]
    async fn a_newer_format_and_a_file_in_the_way_fail() {
        let node = Node::new();
        std::fs::create_dir(node.path("data")).unwrap();
        std::fs::write(node.path("data/FORMAT"), "keystead-data 9\n").unwrap();
        let report = node.diagnose().await;
        let format = find(&report, "Check Data Format");
        assert!(format.status == Status::Fail && format.message.contains('9'), "{format:?}");
        assert!(!node.path("data/LOCK").exists());

        let node = Node::new();
        std::fs::write(node.path("data"), "").unwrap();
        assert_eq!(find(&node.diagnose().await, "Check Data Directory").status, Status::Fail);
    }

    #[tokio::test]
    async fn what_cannot_be_parsed_ends_the_checks() {
        let mut node = Node::new();
        node.more = "clutser_name = \"x\"".to_owned();
        let report = node.diagnose().await;
        let parse = find(&report, "Parse Configuration");
        assert!(parse.status == Status::Fail && parse.message.contains("clutser_name"), "{parse:?}");
        assert!(!flat(&report).iter().any(|(name, _)| name == "Check Ports"));
        let none = run(&[Path::new("/nonexistent/x.hcl").to_owned()], |_| None).await;
        assert_eq!(none.status, Status::Fail);
    }

    /// A certificate's files for names, with a key that is its own or not.
    fn certificate(node: &mut Node, names: &[&str], own_key: bool, key_mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (ca, ca_key) = keystead_tls::make::make_ca("Test CA").unwrap();
        let made = || keystead_tls::make::make_cert(&ca, &ca_key, &names, &[], 90).unwrap();
        let (cert, key) = made();
        let key = if own_key { key } else { made().1 };
        let (cert_file, key_file) = (node.path("cert.pem"), node.path("key.pem"));
        std::fs::write(&cert_file, cert).unwrap();
        std::fs::write(&key_file, key.as_bytes()).unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(key_mode)).unwrap();
        node.listener = format!(
            "tls_cert_file = \"{}\"\n  tls_key_file = \"{}\"",
            cert_file.display(),
            key_file.display()
        );
    }

    #[tokio::test]
    async fn certificates_are_judged_by_key_and_names() {
        let mut node = Node::new();
        certificate(&mut node, &["node1.example"], true, 0o600);
        let report = node.diagnose().await;
        assert_eq!(find(&report, "Check Listener Certificate").status, Status::Ok);
        let names = find(&report, "Check Names of api_addr");
        assert!(names.status == Status::Warn && names.message.contains("127.0.0.1"), "{names:?}");

        certificate(&mut node, &["node1.example"], false, 0o644);
        let report = node.diagnose().await;
        let mismatch = find(&report, "Check Listener Certificate");
        assert!(
            mismatch.status == Status::Fail && mismatch.message.contains("does not belong"),
            "{mismatch:?}"
        );
        assert_eq!(find(&report, "Check File Permissions").status, Status::Warn);
    }

    #[tokio::test]
    async fn nodes_that_do_not_answer_leave_the_clock_unchecked() {
        let mut node = Node::new();
        node.more = String::new();
        let report = node.diagnose().await;
        assert_eq!(find(&report, "Compare With Other Nodes").status, Status::Skip);
    }
}
