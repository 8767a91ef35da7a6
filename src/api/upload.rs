//! Bodies that are not held in memory: those that are made while they are sent, and those that are put into a file as
//! they come in.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{header, request::Parts};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use super::rules::ListenerRules;
use crate::core::{
    Core,
    error::ApiError,
    request::{Operation, Request, Upload},
};

/// Where snapshots are sent to.
const PATHS: [&str; 2] = ["sys/storage/raft/snapshot", "sys/storage/raft/snapshot-force"];
/// The root key of a snapshot that the present one does not open.
pub const ROOT_HEADER: &str = "x-keystead-snapshot-root";
/// Bytes after which the disk is looked at again.
const LOOK_BYTES: u64 = 4 << 20;

/// What comes out of a channel, as a body.
pub fn stream(pieces: mpsc::Receiver<io::Result<Bytes>>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|piece| (piece, pieces)) })
}

/// Whether the body of a request goes into a file.
pub fn is_one(request: &Request) -> bool {
    request.operation == Operation::Update && PATHS.contains(&request.path.as_str())
}

/// Puts a body into a file, once its sender was found allowed to send it.
///
/// # Errors
/// Whatever the sender lacks; 400 for a body that breaks off, 507 without room for it. Nothing is left of it then.
pub async fn receive(
    core: &Core,
    rules: &ListenerRules,
    parts: &Parts,
    request: &Request,
    mut body: Body,
) -> Result<Upload, ApiError> {
    let received = take(core, rules, parts, request, &mut body).await;
    if received.is_err() {
        discard(body).await;
    }
    received
}

async fn take(
    core: &Core,
    rules: &ListenerRules,
    parts: &Parts,
    request: &Request,
    body: &mut Body,
) -> Result<Upload, ApiError> {
    let (upload, mut room) = core.admit_upload(request).await?;
    let promised =
        parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if promised.is_some_and(|bytes: u64| bytes > room) {
        return Err(no_room(room));
    }
    let file = create(upload.path()).map_err(|error| failed(&error))?;
    let (pieces, waiting) = mpsc::channel::<Bytes>(8);
    let writing = tokio::task::spawn_blocking(move || write(file, waiting));
    let mut taken: u64 = 0;
    let mut look_at = LOOK_BYTES;
    loop {
        let frame = match rules.timeouts.read {
            std::time::Duration::ZERO => body.frame().await,
            // A long body may take its time, as long as it goes on.
            limit => tokio::time::timeout(limit, body.frame())
                .await
                .map_err(|_| ApiError::invalid("request body was not received in time"))?,
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| ApiError::invalid("request body could not be read: it broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        taken += data.len() as u64;
        if taken > look_at {
            (_, room) = core.spool()?;
            room += taken;
            look_at = taken + LOOK_BYTES;
        }
        if taken > room {
            return Err(no_room(room));
        }
        if pieces.send(data).await.is_err() {
            break;
        }
    }
    drop(pieces);
    writing.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    Ok(upload)
}

/// Reads on a while for who is refused: a client that is still sending when the connection ends may not see why.
async fn discard(mut body: Body) {
    const MOST_BYTES: usize = 512 << 20;
    const LONGEST: std::time::Duration = std::time::Duration::from_secs(5);
    let reading = async {
        let mut taken = 0;
        while taken < MOST_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            taken += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whether it came to the end makes no difference: the answer is the same.
    drop(tokio::time::timeout(LONGEST, reading).await);
}

fn create(path: &Path) -> io::Result<std::fs::File> {
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)
}

fn write(mut file: std::fs::File, mut pieces: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(piece) = pieces.blocking_recv() {
        file.write_all(&piece)?;
    }
    file.sync_data()
}

fn failed(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::internal("putting a request body into a file", error)
}

fn no_room(room: u64) -> ApiError {
    ApiError::DiskFull(format!(
        "there is no room for this snapshot on this node's disk ({room} bytes can be taken): free space, and send it again"
    ))
}
