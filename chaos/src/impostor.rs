//! An HTTPS server that answers what a test wants it to answer.

use std::net::SocketAddr;

use keystead_tls::{ApiTls, ApiTlsFiles};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{Error, Result, certs::CertFiles};

/// The largest request it reads, in bytes.
const LIMIT: usize = 1 << 20;

/// A request that came in, and where its answer goes.
pub struct Asked {
    /// The path, `/v1/` included.
    pub path: String,
    /// The body as JSON; `null` if it is none.
    pub body: Value,
    answer: tokio::sync::oneshot::Sender<(u16, Value)>,
}

impl Asked {
    /// Answers with a status and a body.
    pub fn answer(self, status: u16, body: Value) {
        // Who asked may have gone.
        drop(self.answer.send((status, body)));
    }
}

/// The server; it stops when this is dropped.
pub struct Impostor {
    /// Where it listens.
    pub address: SocketAddr,
    asked: mpsc::Receiver<Asked>,
    task: JoinHandle<()>,
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Impostor {
    /// Listens on a free port with a certificate that its victims trust.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Tls`].
    pub async fn start(files: &CertFiles) -> Result<Self> {
        let files = ApiTlsFiles {
            cert_file: files.cert.clone(),
            key_file: files.key.clone(),
            ..ApiTlsFiles::default()
        };
        let acceptor = TlsAcceptor::from(ApiTls::load(files)?.server_config());
        let listener = TcpListener::bind(crate::ports::free()?).await.map_err(Error::io("impostor"))?;
        let address = listener.local_addr().map_err(Error::io("impostor"))?;
        let (queue, asked) = mpsc::channel(64);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, queue) = (acceptor.clone(), queue.clone());
                tokio::spawn(async move {
                    let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                    let Some((path, body)) = read_request(&mut tls).await else { return };
                    let (answer, answered) = tokio::sync::oneshot::channel();
                    if queue.send(Asked { path, body, answer }).await.is_err() {
                        return;
                    }
                    let Ok((status, body)) = answered.await else { return };
                    let body = body.to_string();
                    let head = format!(
                        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    drop(tls.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).await);
                    drop(tls.shutdown().await);
                });
            }
        });
        Ok(Self { address, asked, task })
    }

    /// The next request that comes in.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Asked> {
        self.asked.recv().await
    }
}

async fn read_request<S: tokio::io::AsyncRead + Unpin>(stream: &mut S) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    loop {
        if let Some((path, body, complete)) = parse(&bytes)
            && complete
        {
            return Some((path, serde_json::from_slice(body).unwrap_or(Value::Null)));
        }
        if bytes.len() > LIMIT || stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Path, body so far, whether that is all of it.
fn parse(bytes: &[u8]) -> Option<(String, &[u8], bool)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    let length = |line: &str| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse::<usize>().ok() } else { None }
    };
    let length = head.lines().find_map(length).unwrap_or(0);
    let body = &bytes[end + 4..];
    Some((path, body, body.len() >= length))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Client, Pki};

    #[tokio::test]
    async fn it_is_asked_and_answers_as_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::new(directory.path()).unwrap();
        let mut impostor = Impostor::start(&pki.issue("impostor").unwrap()).await.unwrap();
        let client = Client::new(impostor.address, Some(pki.client()));
        let call = tokio::spawn(async move { client.call("PUT", "a/b", Some(&json!({ "x": 1 }))).await });
        let asked = impostor.next().await.unwrap();
        assert_eq!((asked.path.as_str(), &asked.body), ("/v1/a/b", &json!({ "x": 1 })));
        asked.answer(418, json!({ "y": 2 }));
        let answer = call.await.unwrap().unwrap();
        assert_eq!((answer.status, answer.json()), (418, json!({ "y": 2 })));
    }
}
