//! Configurations that load and still cannot be started: each says what is wrong, where, and what to do.

use std::{fs, net::TcpListener, path::Path};

use keystead_tls::make;

use super::start::{Dev, Server};

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        let (ca, ca_key) = make::make_ca("CA").unwrap();
        for name in ["one", "other"] {
            let (cert, key) = make::make_cert(&ca, &ca_key, &["localhost".to_owned()], &[], 90).unwrap();
            fs::write(place.dir.path().join(format!("{name}.pem")), cert).unwrap();
            fs::write(place.dir.path().join(format!("{name}.key")), key.as_bytes()).unwrap();
        }
        fs::write(place.dir.path().join("garbage.pem"), "not a certificate, hunter2").unwrap();
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// What a server with these lines says when it does not start. `$` stands for the directory.
    async fn refusal(&self, storage: &str, listener: &str, top: &str) -> String {
        let text =
            format!("storage \"raft\" {{\n{storage}\n}}\nlistener \"tcp\" {{\n{listener}\n}}\n{top}\n");
        let file = self.dir.path().join("server.hcl");
        fs::write(&file, text.replace('$', &self.dir.path().display().to_string())).unwrap();
        let config = crate::config::load(&[file]).unwrap();
        match Server::start(&config, Dev::default()).await {
            Ok(_) => panic!("it started: {storage} {listener} {top}"),
            Err(failure) => failure.0,
        }
    }
}

const STORAGE: &str = "path = \"$/data\"";
const PLAIN: &str = "address = \"127.0.0.1:0\"\ntls_disable = true";

#[tokio::test]
async fn certificates_that_cannot_be_served_are_named_with_the_remedy() {
    let place = Place::new();
    let encrypted = Path::new(env!("CARGO_MANIFEST_DIR")).join("tls/testdata/p256.encrypted.pem");
    fs::copy(encrypted, place.dir.path().join("encrypted.key")).unwrap();
    for (cert, key, more, words) in [
        ("missing.pem", "one.key", "", ["missing.pem", "No such file"]),
        ("one.pem", "missing.key", "", ["missing.key", "No such file"]),
        ("garbage.pem", "one.key", "", ["garbage.pem", "BEGIN CERTIFICATE"]),
        ("one.pem", "garbage.pem", "", ["garbage.pem", "PRIVATE KEY"]),
        ("one.pem", "other.key", "", ["one.pem", "other.key"]),
        ("one.pem", "encrypted.key", "", ["encrypted.key", "passphrase"]),
        (
            "one.pem",
            "one.key",
            "tls_client_ca_file = \"$/missing-ca.pem\"",
            ["missing-ca.pem", "No such file"],
        ),
    ] {
        let listener = format!(
            "address = \"127.0.0.1:0\"\ntls_cert_file = \"$/{cert}\"\ntls_key_file = \"$/{key}\"\n{more}"
        );
        let refusal = place.refusal(STORAGE, &listener, "").await;
        assert!(refusal.starts_with("Error initializing listener of type tcp: "), "{refusal}");
        assert!(words.iter().all(|word| refusal.contains(word)), "{words:?}: {refusal}");
        assert!(!refusal.contains("hunter2"), "{refusal}");
    }
}

#[tokio::test]
async fn ports_paths_and_addresses_that_cannot_be_had_are_named() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    fs::write(place.dir.path().join("file"), "x").unwrap();
    fs::create_dir(place.dir.path().join("newer")).unwrap();
    fs::write(place.dir.path().join("newer/FORMAT"), "keystead-data 99\n").unwrap();
    let taken_listener = format!("address = \"{port}\"\ntls_disable = true");
    let taken_cluster = format!("{PLAIN}\ncluster_address = \"{port}\"");
    let unix = "listener \"unix\" {\n address = \"$/no/such/dir/api.sock\"\n}";
    let header = format!("{PLAIN}\ncustom_response_headers {{\n default = {{\n \"X Y\" = [\"a\"]\n }}\n}}");
    let join = "path = \"$/data\"\nretry_join {\n leader_api_addr = \"https://a:1\"\n leader_ca_cert_file = \"$/missing-ca.pem\"\n}";
    for (storage, listener, top, words) in [
        (STORAGE, taken_listener.as_str(), "", ["address already in use", "choose another address"]),
        (STORAGE, taken_cluster.as_str(), "", ["address already in use", "choose another address"]),
        (
            STORAGE,
            "address = \"192.0.2.1:0\"\ntls_disable = true",
            "",
            ["192.0.2.1", "this machine does not have it"],
        ),
        (
            STORAGE,
            "address = \"0.0.0.0:0\"\ntls_disable = true",
            "",
            ["api_addr must be set", "reaches this node"],
        ),
        (STORAGE, header.as_str(), "", ["custom_response_headers", "\"X Y\""]),
        (STORAGE, PLAIN, unix, ["listener of type unix", "/no/such/dir/api.sock"]),
        (STORAGE, PLAIN, "pid_file = \"$/no/such/pid\"", ["could not store PID", "/no/such/pid"]),
        ("path = \"$/file\"", PLAIN, "", ["error initializing storage of type raft", "file"]),
        ("path = \"$/file/below\"", PLAIN, "", ["error initializing storage of type raft", "file/below"]),
        ("path = \"$/newer\"", PLAIN, "", ["error initializing storage of type raft", "newer"]),
        (join, PLAIN, "", ["retry_join", "missing-ca.pem"]),
    ] {
        let refusal = place.refusal(storage, listener, top).await;
        assert!(words.iter().all(|word| refusal.contains(word)), "{words:?}: {refusal}");
    }
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused() {
    let place = Place::new();
    let held = keystead_storage::DataDir::open(place.path("data")).unwrap();
    let refusal = place.refusal(STORAGE, PLAIN, "").await;
    assert!(
        refusal.contains("error initializing storage of type raft") && refusal.contains("data"),
        "{refusal}"
    );
    drop(held);
}

#[tokio::test]
async fn a_storage_of_a_single_node_starts_and_what_is_temporary_is_gone_afterwards() {
    let place = Place::new();
    let pid = place.path("pid");
    let socket = place.path("api.sock");
    for storage in ["storage \"inmem\" {}", "backend \"file\" {\n path = \"$/data\"\n}"] {
        let text = format!(
            "{storage}\nlistener \"tcp\" {{\n{PLAIN}\n}}\nlistener \"unix\" {{\n address = \"{socket}\"\n}}\npid_file = \"{pid}\"\n"
        );
        let file = place.dir.path().join("server.hcl");
        fs::write(&file, text.replace('$', &place.dir.path().display().to_string())).unwrap();
        let config = crate::config::load(&[file]).unwrap();
        let server = Server::start(&config, Dev::default()).await.unwrap();
        let kind = config.storage.kind();
        let banner = server.banner(&config);
        assert!(banner.contains(&format!("Storage: {kind}\n")) && banner.contains("unix (addr:"), "{banner}");
        let path = crate::core::path::RequestPath::from_encoded("sys/seal-status").unwrap();
        let request = crate::core::request::Request::new(crate::core::request::Operation::Read, path);
        let answer = server.core.handle(request).await.result;
        let Ok(crate::core::response::Answer::Raw(body)) = answer else { panic!("{answer:?}") };
        assert!(body.contains(&format!("\"storage_type\":\"{kind}\"")), "{body}");
        assert_eq!(fs::read_to_string(&pid).unwrap().trim(), std::process::id().to_string());
        let temporary = server.temporary_directory();
        assert_eq!(temporary.is_some(), kind == "inmem");
        assert!(Path::new(&socket).exists());
        drop(server);
        assert!(!Path::new(&pid).exists() && !Path::new(&socket).exists());
        assert!(temporary.is_none_or(|path| !path.exists()));
    }
}

#[tokio::test]
async fn an_entry_size_that_cannot_be_replicated_is_named_with_its_bounds() {
    let place = Place::new();
    for size in ["1024", "8388608"] {
        let told = place.refusal(&format!("{STORAGE}\nmax_entry_size = {size}"), PLAIN, "").await;
        assert!(told.contains(size) && told.contains("65536") && told.contains("2097152"), "{told}");
    }
}
