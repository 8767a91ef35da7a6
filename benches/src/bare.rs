//! Limit (a): a server of axum and rustls that does nothing but answer the same bytes, with the same TLS.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Bytes, routing::get};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use keystead_chaos::{Client, Pki, Process, ports, wait};
use keystead_tls::{ApiTls, ApiTlsFiles};
use rustls::ClientConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{Error, Result, load::Target, requests::Kind};

/// The first argument of a process that is this server.
pub const ROLE: &str = "bare-server";

/// An answer that was seen from Keystead.
pub struct Answer {
    /// Its headers but for those that an HTTP library writes by itself.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// From a response.
    pub fn of(response: &keystead_chaos::Response) -> Self {
        let own = |name: &str| !["date", "content-length"].contains(&name);
        let headers = response.headers.iter().filter(|(name, _)| own(name.as_str()));
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Self {
            headers: headers.map(|(name, value)| (name.to_string(), text(value))).collect(),
            body: response.body.to_vec(),
        }
    }
}

/// The running server.
pub struct Bare {
    process: Process,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    answers: [Answer; 2],
}

impl Bare {
    /// Starts it in a process of its own, to answer what Keystead answers.
    pub async fn start(directory: &Path, get: Answer, put: Answer) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let pki = Pki::new(directory)?;
        let files = pki.issue("bare")?;
        for (answer, name) in [(&get, "get"), (&put, "put")] {
            std::fs::write(directory.join(name), serde_json::to_vec(&(&answer.headers, &answer.body))?)?;
        }
        let address = ports::free()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ROLE).arg(address.to_string()).args([&files.cert, &files.key]).arg(directory);
        let process = Process::start("bare server", command, &directory.join("log"))?;
        let client = Client::new(address, Some(pki.client()));
        wait::until("the bare server to answer", Duration::from_secs(10), || async {
            process.alive()?;
            client.call("GET", "ready", None).await
        })
        .await?;
        Ok(Self { process, address, tls: pki.client(), answers: [get, put] })
    }

    /// Where requests go.
    pub fn target(&self) -> Target {
        Target { address: self.address, tls: self.tls.clone(), pids: vec![self.process.pid()] }
    }

    /// The body of every answer to a kind of request.
    pub fn body(&self, kind: Kind) -> &[u8] {
        &self.answers[usize::from(kind == Kind::Put)].body
    }
}

/// The server's process: serves until it is killed.
pub async fn serve(mut words: impl Iterator<Item = String>) -> Result<()> {
    let mut word = || words.next().ok_or("address, certificate, key and directory are needed");
    let address: SocketAddr = word()?.parse()?;
    let (cert_file, key_file) = (PathBuf::from(word()?), PathBuf::from(word()?));
    let directory = PathBuf::from(word()?);
    let tls = ApiTls::load(ApiTlsFiles { cert_file, key_file, ..ApiTlsFiles::default() })?;
    let acceptor = TlsAcceptor::from(tls.server_config());
    let (read, written) = (answer(&directory.join("get"))?, answer(&directory.join("put"))?);
    let asked = get(move || std::future::ready(read.clone()));
    let router = Router::new()
        .route("/v1/{*path}", asked.put(move |_body: Bytes| std::future::ready(written.clone())));
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await?;
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
                .await?;
            Ok::<_, Error>(())
        });
    }
}

type Headers = Vec<(String, String)>;

#[derive(Clone)]
struct Ready {
    headers: http::HeaderMap,
    body: Bytes,
}

impl axum::response::IntoResponse for Ready {
    fn into_response(self) -> axum::response::Response {
        (self.headers, self.body).into_response()
    }
}

fn answer(file: &Path) -> Result<Ready> {
    let (named, body): (Headers, Vec<u8>) = serde_json::from_slice(&std::fs::read(file)?)?;
    let mut headers = http::HeaderMap::new();
    for (name, value) in named {
        headers.insert(http::HeaderName::try_from(name)?, http::HeaderValue::try_from(value)?);
    }
    Ok(Ready { headers, body: body.into() })
}
