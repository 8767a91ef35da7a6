//! Where scheduled snapshots are put: a directory, or a bucket of a store of the S3 kind.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use keystead_raft::clock::wall_ms;
use object_store::{
    Certificate, ClientOptions, ObjectStore, ObjectStoreExt as _, RetryConfig, WriteMultipart,
    aws::{AmazonS3, AmazonS3Builder},
    path::Path as Key,
};

use super::save::Archive;
use crate::core::{
    request::Upload,
    snapshot_auto::{S3, Schedule, Target},
};

/// Parts of an upload that are on their way at once, each of [`PART_BYTES`].
const PARTS: usize = 2;
const PART_BYTES: usize = 8 << 20;
/// How long a store may be silent, and how long one request is repeated.
const SILENCE: Duration = Duration::from_secs(30);

/// The place of one schedule's snapshots.
pub(super) struct Store {
    place: Place,
    schedule: Schedule,
}

enum Place {
    Directory(PathBuf),
    Bucket { store: Arc<AmazonS3>, prefix: String, name: String },
}

/// A snapshot that lies there: its file, when it was made, and its bytes.
struct Found {
    file: String,
    created_ms: u64,
    bytes: u64,
}

impl Store {
    /// The place that a schedule names. Nothing is asked of it yet.
    pub fn open(schedule: &Schedule) -> Result<Self, String> {
        let place = match &schedule.target {
            Target::Local { .. } => Place::Directory(PathBuf::from(&schedule.path_prefix)),
            Target::S3(s3) => Place::Bucket {
                store: Arc::new(connect(s3)?),
                prefix: schedule.path_prefix.trim_matches('/').to_owned(),
                name: s3.bucket.clone(),
            },
        };
        Ok(Self { place, schedule: schedule.clone() })
    }

    /// How people name a file in it.
    pub fn url(&self, file: &str) -> String {
        match &self.place {
            Place::Directory(dir) => format!("file://{}", dir.join(file).display()),
            Place::Bucket { prefix, name, .. } => format!("s3://{name}/{}", key(prefix, file)),
        }
    }

    /// Puts an archive there, which has its name once it is whole.
    pub async fn put(&self, file: &str, archive: Archive) -> Result<(), String> {
        match &self.place {
            Place::Directory(dir) => {
                let dir = dir.clone();
                let file = file.to_owned();
                let put = tokio::task::spawn_blocking(move || put_file(&dir, &file, archive));
                put.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
            }
            Place::Bucket { store, prefix, .. } => put_object(store, &key(prefix, file), archive).await,
        }
    }

    /// Fetches a file to where `to` says.
    pub async fn fetch(&self, file: &str, to: PathBuf) -> Result<Upload, String> {
        let fetched = Upload::at(to);
        match &self.place {
            Place::Directory(dir) => {
                let (from, to) = (dir.join(file), fetched.path().to_owned());
                let copied = tokio::task::spawn_blocking(move || fs::copy(from, to));
                copied.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            }
            Place::Bucket { store, prefix, .. } => {
                let mut body = store.get(&key(prefix, file)).await.map_err(shown)?.into_stream();
                let mut out = create(fetched.path()).map_err(|e| e.to_string())?;
                while let Some(bytes) = body.next().await {
                    let bytes = bytes.map_err(shown)?;
                    crate::core::blocking_if(true, || out.write_all(&bytes)).map_err(|e| e.to_string())?;
                }
            }
        }
        Ok(fetched)
    }

    /// Removes those that the schedule does not keep. `newest` stays whatever happens.
    pub async fn tidy(&self, newest: &str) -> Result<(), String> {
        let found = self.list().await?;
        for file in self.surplus(found, newest, wall_ms()) {
            tracing::info!(file, "a scheduled snapshot is removed: newer ones take its place");
            match &self.place {
                Place::Directory(dir) => {
                    let path = dir.join(&file);
                    let removed = tokio::task::spawn_blocking(move || fs::remove_file(path));
                    removed.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
                }
                Place::Bucket { store, prefix, .. } => {
                    store.delete(&key(prefix, &file)).await.map_err(shown)?;
                }
            }
        }
        Ok(())
    }

    fn surplus(&self, mut found: Vec<Found>, newest: &str, now_ms: u64) -> Vec<String> {
        let Schedule { retain, retain_age_s, target, .. } = &self.schedule;
        found.sort_by_key(|found| std::cmp::Reverse(found.created_ms));
        let room = match target {
            Target::Local { max_space_bytes: 0 } | Target::S3(_) => u64::MAX,
            Target::Local { max_space_bytes } => *max_space_bytes,
        };
        let mut bytes: u64 = 0;
        let surplus = found.into_iter().zip(0_u64..).filter(|(found, number)| {
            bytes = bytes.saturating_add(found.bytes);
            let old = *retain_age_s > 0 && now_ms.saturating_sub(found.created_ms) / 1000 > *retain_age_s;
            found.file != newest && (*number >= *retain || old || bytes > room)
        });
        surplus.map(|(found, _)| found.file).collect()
    }

    async fn list(&self) -> Result<Vec<Found>, String> {
        let file_prefix = &self.schedule.file_prefix;
        match &self.place {
            Place::Directory(dir) => {
                let (dir, file_prefix) = (dir.clone(), file_prefix.clone());
                let listed = tokio::task::spawn_blocking(move || list_directory(&dir, &file_prefix));
                listed.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
            }
            Place::Bucket { store, prefix, .. } => {
                let folder = (!prefix.is_empty()).then(|| Key::from(prefix.as_str()));
                let listed = store.list_with_delimiter(folder.as_ref()).await.map_err(shown)?;
                let found = listed.objects.into_iter().filter_map(|object| {
                    let file = object.location.filename()?.to_owned();
                    let created_ms = created(&file, file_prefix)?;
                    Some(Found { file, created_ms, bytes: object.size })
                });
                Ok(found.collect())
            }
        }
    }
}

/// When a file of that name was made; `None` for one that is none of ours.
fn created(file: &str, file_prefix: &str) -> Option<u64> {
    let number = file.strip_prefix(file_prefix)?.strip_prefix('-')?.strip_suffix(".snap")?;
    (number.len() >= 13 && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| number.parse().ok())?
}

fn key(prefix: &str, file: &str) -> Key {
    Key::from(format!("{prefix}/{file}"))
}

/// What a store says, without what it was asked with.
fn shown(error: object_store::Error) -> String {
    error.to_string()
}

fn connect(s3: &S3) -> Result<AmazonS3, String> {
    let mut options = ClientOptions::new()
        .with_connect_timeout(SILENCE)
        .with_timeout(SILENCE)
        .with_allow_http(s3.disable_tls);
    if !s3.ca_cert.is_empty() {
        let certificates = Certificate::from_pem_bundle(s3.ca_cert.as_bytes()).map_err(shown)?;
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    let retry = RetryConfig { retry_timeout: SILENCE, ..RetryConfig::default() };
    let (secret, session) = s3.expose_secrets();
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_client_options(options)
        .with_retry(retry)
        .with_virtual_hosted_style_request(!s3.force_path_style && s3.endpoint.is_empty());
    if !s3.region.is_empty() {
        builder = builder.with_region(&s3.region);
    }
    if !s3.endpoint.is_empty() {
        let scheme = if s3.disable_tls { "http" } else { "https" };
        let endpoint = match s3.endpoint.contains("://") {
            true => s3.endpoint.clone(),
            false => format!("{scheme}://{}", s3.endpoint),
        };
        builder = builder.with_endpoint(endpoint);
    }
    if !s3.access_key_id.is_empty() {
        builder = builder.with_access_key_id(&s3.access_key_id).with_secret_access_key(secret);
    }
    if !session.is_empty() {
        builder = builder.with_token(session);
    }
    builder.build().map_err(shown)
}

async fn put_object(store: &AmazonS3, key: &Key, mut archive: Archive) -> Result<(), String> {
    let upload = store.put_multipart(key).await.map_err(shown)?;
    let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    while let Some(piece) = archive.recv().await {
        let sent = match piece {
            Ok(piece) => match parts.wait_for_capacity(PARTS).await {
                Ok(()) => {
                    parts.put(piece);
                    Ok(())
                }
                Err(error) => Err(shown(error)),
            },
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            // What was sent so far is of no use, and would be paid for.
            if let Err(error) = parts.abort().await {
                tracing::warn!(%error, "a broken off upload cannot be removed from the store");
            }
            return Err(error);
        }
    }
    parts.finish().await.map(drop).map_err(shown)
}

fn create(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
}

fn put_file(dir: &Path, file: &str, archive: Archive) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = Upload::at(dir.join(format!("{file}.tmp")));
    let mut out = create(temporary.path())?;
    let mut archive = archive;
    while let Some(piece) = archive.blocking_recv() {
        out.write_all(&piece?)?;
    }
    out.sync_all()?;
    fs::rename(temporary.path(), dir.join(file))?;
    fs::File::open(dir)?.sync_all()
}

fn list_directory(dir: &Path, file_prefix: &str) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if let Some(created_ms) = created(&file, file_prefix) {
            found.push(Found { file, created_ms, bytes: entry.metadata()?.len() });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(retain: u64, retain_age_s: u64, max_space_bytes: u64) -> Store {
        let schedule = Schedule {
            interval_s: 60,
            retain,
            retain_age_s,
            path_prefix: "/x".to_owned(),
            file_prefix: "k".to_owned(),
            test_restore: false,
            target: Target::Local { max_space_bytes },
        };
        Store { place: Place::Directory("/x".into()), schedule }
    }

    fn found() -> Vec<Found> {
        let of = |n: u64| Found { file: format!("k-{:013}.snap", n * 1000), created_ms: n * 1000, bytes: 10 };
        (1..=5).map(of).collect()
    }

    #[test]
    fn what_is_kept_is_bounded_by_count_age_and_room_and_the_newest_stays() {
        let newest = "k-0000000005000.snap";
        let left = |store: &Store| 5 - store.surplus(found(), newest, 6_000).len();
        assert_eq!(left(&store(3, 0, 0)), 3);
        assert_eq!(left(&store(9, 2, 0)), 2, "older than two seconds at 6 s");
        assert_eq!(left(&store(9, 0, 25)), 2);
        assert_eq!(left(&store(1, 1, 5)), 1, "the newest stays");
        let gone = store(3, 0, 0).surplus(found(), newest, 6_000);
        assert_eq!(gone, ["k-0000000002000.snap", "k-0000000001000.snap"], "the oldest go");
    }

    #[test]
    fn files_of_others_are_left_alone() {
        for file in
            ["k-x.snap", "k-.snap", "other-0000000001000.snap", "k-0000000001000.snap.tmp", "k-1.snap"]
        {
            assert_eq!(created(file, "k"), None, "{file}");
        }
        assert_eq!(created("k-1700000000000.snap", "k"), Some(1_700_000_000_000));
    }
}
