//! Published configuration blocks, read from the documents that print them.
//!
//! The documents lie beside the project where it is built; elsewhere these tests say so and do nothing. Copies of
//! the same blocks are in `tests.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ListenerConfig, StorageConfig, TlsVersion, load};

/// The document whose name begins with `number`.
fn document(number: &str) -> Option<String> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/seeds");
    let found = fs::read_dir(&seeds).ok().into_iter().flatten().flatten();
    let mut found = found.map(|entry| entry.path());
    let path: Option<PathBuf> = found.find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{number}_")))
    });
    if path.is_none() {
        eprintln!("skipped: no document {number} in {}", seeds.display());
    }
    path.map(|path| fs::read_to_string(path).unwrap())
}

/// The lines between one that `begins` and the next that `ends`, in every place.
fn between(text: &str, begins: impl Fn(&str) -> bool, ends: impl Fn(&str) -> bool) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            None if begins(line) => open = Some(String::new()),
            None => {}
            Some(_) if ends(line) => blocks.extend(open.take()),
            Some(block) => *block += &format!("{line}\n"),
        }
    }
    blocks
}

fn files(text: &str) -> Vec<String> {
    between(text, |line| line.contains("<<EOF"), |line| line.trim() == "EOF")
}

fn fences(text: &str) -> Vec<String> {
    between(text, |line| line.trim().starts_with("```bash"), |line| line.trim() == "```")
}

fn loaded(text: &str, name: &str) -> Result<super::ServerConfig, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    load(&[path]).map_err(|error| error.to_string())
}

#[test]
fn the_single_node_file_of_document_001_loads() {
    let Some(text) = document("001") else { return };
    let file = files(&text).into_iter().find(|block| block.contains("storage \"file\"")).unwrap();
    let config = loaded(&file, "vault.hcl").unwrap();
    assert!(matches!(&config.storage, StorageConfig::File { path } if path == Path::new("/opt/vault/data")));
    assert_eq!(config.api_addr.as_deref(), Some("http://127.0.0.1:8200"));
    assert_eq!(config.cluster_addr.as_deref(), Some("https://127.0.0.1:8201"));
    assert!(config.ui);
    let Some(ListenerConfig::Tcp(tcp)) = config.listeners.first() else { panic!("a listener") };
    assert_eq!(tcp.address.to_string(), "0.0.0.0:8200");
    assert!(tcp.tls.is_none());
}

#[test]
fn the_production_fragments_of_document_001_load_or_name_the_embedded_store() {
    let Some(text) = document("001") else { return };
    let fragments = fences(&text);
    let find = |word: &str| fragments.iter().find(|block| block.trim().starts_with(word)).unwrap();
    let storage = "storage \"raft\" {\n  path = \"data\"\n}\n";
    let config = loaded(&format!("{storage}{}", find("listener \"tcp\"")), "vault.hcl").unwrap();
    let Some(ListenerConfig::Tcp(tcp)) = config.listeners.first() else { panic!("a listener") };
    assert_eq!(tcp.tls.as_ref().unwrap().cert_file, Path::new("/etc/vault/tls/vault.crt"));
    assert_eq!(config.warnings, []);
    let refused = loaded(find("storage \"consul\""), "vault.hcl").unwrap_err();
    assert!(refused.contains("use storage \"raft\", the embedded and replicated store"), "{refused}");
    let refused = loaded(&format!("{storage}{}", find("ha_storage \"consul\"")), "vault.hcl").unwrap_err();
    assert!(refused.contains("storage \"raft\" replicates by itself"), "{refused}");
}

#[test]
fn the_json_of_document_003_loads_without_a_warning() {
    let Some(text) = document("003") else { return };
    let file = files(&text).into_iter().find(|block| block.contains("\"backend\"")).unwrap();
    let config = loaded(&file, "vault-config.json").unwrap();
    assert!(matches!(&config.storage, StorageConfig::File { path } if path == Path::new("vault/file")));
    assert_eq!(config.api_addr.as_deref(), Some("https://127.0.0.1:8200"));
    assert_eq!((config.default_lease_ttl_s, config.max_lease_ttl_s), (168 * 3_600, 720 * 3_600));
    let Some(ListenerConfig::Tcp(tcp)) = config.listeners.first() else { panic!("a listener") };
    assert_eq!(tcp.address.to_string(), "0.0.0.0:8200");
    let tls = tcp.tls.as_ref().unwrap();
    assert_eq!(
        (tls.cert_file.as_path(), tls.key_file.as_path()),
        (Path::new("vault-tls.crt"), Path::new("vault-tls.key"))
    );
    assert_eq!(tls.min_version, TlsVersion::Tls12);
    assert_eq!(config.warnings, []);
}
