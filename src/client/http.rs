//! Requests and answers: the pool of idle connections, one redirect, one deadline, one size limit.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use parking_lot::Mutex;

use super::body::{Outgoing, RequestBody, UploadBody};
use super::connect::{Sender, Tls, connect};
use super::{Address, ClientConfig, ClientError, Failure, Scheme, Token};

/// Idle connections kept; a client talks to one server, or two after a redirect.
const IDLE_CONNECTIONS: usize = 4;
/// An idle connection older than this is not used again: the server is likely to be closing it.
const IDLE_AGE: Duration = Duration::from_secs(30);
/// How long one of several addresses may take to connect, TLS included.
const DIAL_TIME: Duration = Duration::from_secs(5);

/// A complete answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status line's code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The URL that answered, after a redirect the second one.
    pub url: String,
}

/// A client of one server, or of a cluster at several addresses.
///
/// With several addresses, a request goes to the one that answered last, and to the next ones only while
/// none has seen it, or if it is a GET, which may be sent twice.
///
/// It may be shared; requests running at the same time use a connection each. It needs a tokio runtime with
/// I/O and time, the same one for all requests.
pub struct Client {
    config: ClientConfig,
    tls: Option<Tls>,
    idle: Mutex<Vec<Idle>>,
    /// Which of the addresses answered last.
    current: AtomicUsize,
}

/// An answer of which the head has come.
struct Head {
    parts: ::http::response::Parts,
    incoming: hyper::body::Incoming,
    sender: Sender,
    peer: (Scheme, String),
    url: String,
}

struct Idle {
    peer: (Scheme, String),
    sender: Sender,
    since: Instant,
}

impl Client {
    /// Makes a client; nothing is dialled yet.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] when an `https` address comes without a TLS configuration.
    pub fn new(config: ClientConfig) -> Result<Client, ClientError> {
        let tls = config.tls.as_deref().map(|tls| Tls::new(tls, config.tls_server_name.clone()));
        let encrypted = config.addresses().any(|address| address.scheme() == Scheme::Https);
        if encrypted && tls.is_none() {
            return Err(ClientError::Unusable("an https address needs a TLS configuration".to_owned()));
        }
        Ok(Client { config, tls, idle: Mutex::new(Vec::new()), current: AtomicUsize::new(0) })
    }

    /// The server this client talks to: of several, the one that answered last.
    pub fn address(&self) -> &Address {
        let current = self.current.load(Ordering::Relaxed);
        self.config.addresses().nth(current).unwrap_or(&self.config.address)
    }

    /// The token sent with every request, where there is one.
    pub fn token(&self) -> Option<&Token> {
        self.config.token.as_ref()
    }

    /// Sends another token from now on.
    pub fn replace_token(&mut self, token: Option<Token>) {
        self.config.token = token;
    }

    /// The URL a request for this path is sent to.
    pub fn url(&self, path_and_query: &str) -> String {
        format!("{}{}", self.address(), path_and_query)
    }

    /// Sends one request and reads its whole answer.
    ///
    /// `path_and_query` begins with a slash and is already percent-encoded (see
    /// [`escape_path`](super::escape_path)); the address's base path is put in front. Headers given here
    /// replace those of the configuration that have the same name.
    ///
    /// # Errors
    /// [`ClientError::Transport`] without a complete answer. An HTTP error status is an answer, no error.
    /// A request that may have been executed is never sent again, except a GET to the next of several
    /// addresses, and to follow a redirect: a kept connection that turns out closed before anything was
    /// written is replaced. [`ClientError::NoneAnswered`] when there are several addresses and none answers.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the request, which may still take effect, and closes its connection.
    pub async fn request(
        &self,
        method: &str,
        path_and_query: &str,
        body: Option<Bytes>,
        extra_headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, ClientError> {
        let method: Method = method.parse().map_err(|_| unusable(format!("invalid method {method:?}")))?;
        let url = self.url(path_and_query);
        let exchange = self.at_any_address(&method, path_and_query, body, extra_headers);
        match tokio::time::timeout(self.config.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(transport(&method, &url, Failure::Timeout)),
        }
    }

    /// Asks the address that answered last, then the others in turn, until one answers.
    async fn at_any_address(
        &self,
        method: &Method,
        path_and_query: &str,
        body: Option<Bytes>,
        extra_headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, ClientError> {
        let addresses: Vec<_> = self.config.addresses().collect();
        let first = self.current.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for step in 0..addresses.len() {
            let at = (first + step) % addresses.len();
            let sent = self.with_redirect(addresses[at], method, path_and_query, body.clone(), extra_headers);
            match sent.await {
                Err(error) if error.lets_another_try(method) => failures.push(error),
                outcome => {
                    self.current.store(at, Ordering::Relaxed);
                    return outcome;
                }
            }
        }
        match failures.pop() {
            Some(only) if failures.is_empty() => Err(only),
            Some(last) => {
                failures.push(last);
                Err(ClientError::NoneAnswered(failures))
            }
            None => Err(unusable("there is no address".to_owned())),
        }
    }

    async fn with_redirect(
        &self,
        address: &Address,
        method: &Method,
        path_and_query: &str,
        body: Option<Bytes>,
        extra_headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, ClientError> {
        let body = Full::new(body.unwrap_or_default()).into();
        let head = self.head(address, method, path_and_query, body, extra_headers).await?;
        self.complete(method, head).await
    }

    async fn exchange(
        &self,
        method: &Method,
        address: &Address,
        target: &str,
        body: Outgoing,
        extra_headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Head, ClientError> {
        let url = format!("{}://{}{target}", address.scheme().as_str(), address.authority());
        let failed = |failure| transport(method, &url, failure);
        let mut request = self.build(method, address, target, body, extra_headers)?;
        let peer = (address.scheme(), address.host_and_port());
        loop {
            let kept = self.take_idle(&peer).await;
            let reused = kept.is_some();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect(address).await.map_err(failed)?,
            };
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(failed(Failure::Exchange(error.into_error()))),
                },
            };
            let (parts, incoming) = response.into_parts();
            return Ok(Head { parts, incoming, sender, peer, url });
        }
    }

    /// Reads what is left of an answer, and keeps the connection.
    async fn complete(&self, method: &Method, head: Head) -> Result<Response, ClientError> {
        let Head { parts, incoming, sender, peer, url } = head;
        let body = self.collect(incoming).await.map_err(|failure| transport(method, &url, failure))?;
        self.keep(peer, sender);
        Ok(Response { status: parts.status, headers: parts.headers, body, url })
    }

    /// Sends a GET and gives the bytes of a good answer to `sink` as they come. The deadline is that of each piece.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`ClientError::Sink`] with what `sink` gave. What `sink` was given before an error is not all.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn download(
        &self,
        path_and_query: &str,
        extra_headers: &[(HeaderName, HeaderValue)],
        mut sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<Response, ClientError> {
        let method = Method::GET;
        let late = |url: &str| transport(&method, url, Failure::Timeout);
        let asked = self.head(self.address(), &method, path_and_query, Full::default().into(), extra_headers);
        let head = tokio::time::timeout(self.config.timeout, asked).await;
        let mut head = head.map_err(|_| late(&self.url(path_and_query)))??;
        if !head.parts.status.is_success() {
            return self.complete(&method, head).await;
        }
        loop {
            let frame = tokio::time::timeout(self.config.timeout, head.incoming.frame()).await;
            let Some(frame) = frame.map_err(|_| late(&head.url))? else { break };
            let frame = frame.map_err(|error| transport(&method, &head.url, Failure::Exchange(error)))?;
            if let Ok(data) = frame.into_data() {
                sink(&data).map_err(ClientError::Sink)?;
            }
        }
        let Head { parts, url, .. } = head;
        Ok(Response { status: parts.status, headers: parts.headers, body: Bytes::new(), url })
    }

    /// Sends a POST whose body is read from a file, and reads the answer. The deadline begins when all of it was sent.
    ///
    /// # Errors
    /// As [`request`](Self::request).
    ///
    /// # Cancel safety
    /// Dropping the future abandons the request, which may still take effect.
    pub async fn upload(
        &self,
        path_and_query: &str,
        file: &std::path::Path,
        extra_headers: &[(HeaderName, HeaderValue)],
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Response, ClientError> {
        let body = UploadBody { file: file.to_owned(), progress: std::sync::Arc::new(progress) };
        let head =
            self.head(self.address(), &Method::POST, path_and_query, body.into(), extra_headers).await?;
        self.complete(&Method::POST, head).await
    }

    /// Sends a request and reads the head of its answer, of the second one after a redirect.
    async fn head(
        &self,
        address: &Address,
        method: &Method,
        path_and_query: &str,
        body: Outgoing,
        extra_headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Head, ClientError> {
        let target = format!("{}{}", address.base_path(), path_and_query);
        let head = self.exchange(method, address, &target, body.clone(), extra_headers).await?;
        let redirected = matches!(
            head.parts.status,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::TEMPORARY_REDIRECT
        );
        if !redirected || !self.config.follow_redirects {
            return Ok(head);
        }
        // What is left of it is read, so that its connection can be used again.
        let first = self.complete(method, head).await?;
        let failed = |why: String| transport(method, &first.url, Failure::Redirect(why));
        let Some(location) = first.headers.get(header::LOCATION) else {
            return Err(failed(format!("{} response missing Location header", first.status.as_u16())));
        };
        let location = location.to_str().map_err(|_| failed("unreadable Location header".to_owned()))?;
        let (address, target) = redirect_target(address, location).map_err(failed)?;
        self.exchange(method, &address, &target, body, extra_headers).await
    }

    fn build(
        &self,
        method: &Method,
        address: &Address,
        target: &str,
        body: Outgoing,
        extra_headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Request<RequestBody>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .body(body.open().map_err(ClientError::Sink)?)
            .map_err(|_| unusable(format!("{target:?} cannot be requested: it is not a valid path")))?;
        let headers = request.headers_mut();
        let host =
            HeaderValue::from_str(&address.authority()).map_err(|_| unusable("invalid host".into()))?;
        headers.insert(header::HOST, host);
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(token) = self.config.token.as_ref().filter(|token| !token.is_empty()) {
            let mut value = HeaderValue::from_str(token.expose()).map_err(|_| {
                unusable(
                    "the token contains characters that cannot be sent; is it complete, on one line?".into(),
                )
            })?;
            value.set_sensitive(true);
            headers.insert("x-vault-token", value);
        }
        if let Some(namespace) = self.config.namespace.as_deref().filter(|namespace| !namespace.is_empty()) {
            let value = HeaderValue::from_str(namespace).map_err(|_| unusable("invalid namespace".into()))?;
            headers.insert("x-vault-namespace", value);
        }
        // Several values may come under one name, in either list: append, once per list after a clearing.
        for list in [self.config.headers.as_slice(), extra_headers] {
            for (name, _) in list {
                headers.remove(name);
            }
            for (name, value) in list {
                headers.append(name, value.clone());
            }
        }
        Ok(request)
    }

    /// Dials. Where there are other addresses, a silent one must not use up all the time.
    async fn connect(&self, address: &Address) -> Result<Sender, Failure> {
        let dialled = connect(address, self.tls.as_ref());
        if self.config.further_addresses.is_empty() {
            return dialled.await;
        }
        let peer = || address.host_and_port();
        match tokio::time::timeout(DIAL_TIME, dialled).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Dial { peer: peer(), source: std::io::ErrorKind::TimedOut.into() }),
        }
    }

    async fn collect(&self, body: hyper::body::Incoming) -> Result<Bytes, Failure> {
        let limit = self.config.max_response_bytes;
        match Limited::new(body, limit).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Failure::TooLarge { limit }),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(error) => Err(Failure::Exchange(*error)),
                Err(_) => Err(Failure::TooLarge { limit }),
            },
        }
    }

    /// A kept connection to that peer that can take a request now.
    async fn take_idle(&self, peer: &(Scheme, String)) -> Option<Sender> {
        loop {
            let mut sender = self.pop_idle(peer)?;
            // Its answer has been read whole, so its task either is done with it or has closed.
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn pop_idle(&self, peer: &(Scheme, String)) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|entry| entry.since.elapsed() < IDLE_AGE && !entry.sender.is_closed());
        let at = idle.iter().rposition(|entry| entry.peer == *peer)?;
        Some(idle.swap_remove(at).sender)
    }

    fn keep(&self, peer: (Scheme, String), sender: Sender) {
        let mut idle = self.idle.lock();
        if !sender.is_closed() && idle.len() < IDLE_CONNECTIONS {
            idle.push(Idle { peer, sender, since: Instant::now() });
        }
    }
}

/// Where a `Location` points: another server, or another path on this one.
///
/// The token goes along to wherever the server says, as with Vault's client; only a step from TLS down to
/// plain text is refused.
fn redirect_target(from: &Address, location: &str) -> Result<(Address, String), String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Ok((from.clone(), location.to_owned()));
    }
    let address = Address::parse(location).map_err(|error| format!("unusable redirect: {error}"))?;
    if from.scheme() == Scheme::Https && address.scheme() == Scheme::Http {
        return Err("redirect would cause protocol downgrade".to_owned());
    }
    let after_scheme = location.split_once("://").map_or("", |(_, rest)| rest);
    let target = after_scheme.find('/').map_or("/", |at| &after_scheme[at..]);
    Ok((address, target.to_owned()))
}

fn unusable(why: String) -> ClientError {
    ClientError::Unusable(why)
}

fn transport(method: &Method, url: &str, source: Failure) -> ClientError {
    ClientError::Transport { method: method.to_string(), url: url.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    use super::*;

    /// Serves the given raw answers, one per request, and reports (connection number, head of the request).
    fn serve(answers: Vec<String>) -> (Address, mpsc::Receiver<(usize, String)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (report, seen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut answers = answers.into_iter();
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept() else { return };
                let mut reader = BufReader::new(stream);
                while let Some(head) = read_request(&mut reader) {
                    report.send((connection, head)).unwrap();
                    let Some(answer) = answers.next() else { return };
                    reader.get_mut().write_all(answer.as_bytes()).unwrap();
                    if answer.contains("connection: close") {
                        break;
                    }
                }
            }
        });
        (Address::parse(&address).unwrap(), seen)
    }

    fn read_request(reader: &mut BufReader<TcpStream>) -> Option<String> {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line.to_lowercase());
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
        reader.read_exact(&mut body).ok()?;
        Some(head)
    }

    fn answer(status: &str, headers: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
    }

    fn client(address: Address) -> Client {
        let config = ClientConfig { token: Some(Token::new("s.root")), ..ClientConfig::new(address) };
        Client::new(config).unwrap()
    }

    #[tokio::test]
    async fn a_second_request_uses_the_kept_connection() {
        let (address, seen) = serve(vec![answer("200 OK", "", "a"), answer("404 Not Found", "", "b")]);
        let client = client(address);
        assert_eq!(client.request("GET", "/v1/a", None, &[]).await.unwrap().body, "a");
        let second = client.request("PUT", "/v1/b", Some("{}".into()), &[]).await.unwrap();
        assert_eq!((second.status.as_u16(), &second.body[..]), (404, &b"b"[..]));
        let (first, head) = seen.recv().unwrap();
        assert!(head.contains("x-vault-token: s.root\r\n") && head.contains("x-vault-request: true\r\n"));
        assert_eq!((first, seen.recv().unwrap().0), (0, 0));
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closes_is_dialled_again() {
        let closing = answer("200 OK", "connection: close\r\n", "a");
        let (address, seen) = serve(vec![closing, answer("200 OK", "", "b")]);
        let client = client(address);
        client.request("GET", "/v1/a", None, &[]).await.unwrap();
        assert_eq!(client.request("GET", "/v1/b", None, &[]).await.unwrap().body, "b");
        assert_eq!((seen.recv().unwrap().0, seen.recv().unwrap().0), (0, 1));
    }

    #[tokio::test]
    async fn one_redirect_is_followed_with_the_token() {
        let (leader, seen) = serve(vec![answer("200 OK", "", "from the leader")]);
        let location = format!("location: {leader}/v1/x?version=2\r\n");
        let (standby, _at_standby) = serve(vec![answer("307 Temporary Redirect", &location, "")]);
        let response = client(standby).request("GET", "/v1/x?version=2", None, &[]).await.unwrap();
        assert_eq!(response.body, "from the leader");
        assert_eq!(response.url, format!("{leader}/v1/x?version=2"));
        let head = seen.recv().unwrap().1;
        assert!(head.starts_with("get /v1/x?version=2 http/1.1") && head.contains("x-vault-token: s.root"));
    }

    #[tokio::test]
    async fn a_second_redirect_and_a_disabled_one_are_answers() {
        let again = answer("307 Temporary Redirect", "location: /v1/y\r\n", "");
        let (address, seen) = serve(vec![again.clone(), again.clone()]);
        let status = client(address).request("GET", "/v1/x", None, &[]).await.unwrap().status;
        assert_eq!((status.as_u16(), seen.iter().take(2).count()), (307, 2));

        let (address, _seen) = serve(vec![again]);
        let config = ClientConfig { follow_redirects: false, ..ClientConfig::new(address) };
        let response = Client::new(config).unwrap().request("GET", "/v1/x", None, &[]).await.unwrap();
        assert_eq!(response.status.as_u16(), 307);
    }

    /// An address on which nothing listens: its port was free a moment ago.
    fn nobody() -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Address::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap()
    }

    fn client_of(addresses: [Address; 2]) -> Client {
        let [first, second] = addresses;
        Client::new(ClientConfig { further_addresses: vec![second], ..ClientConfig::new(first) }).unwrap()
    }

    #[tokio::test]
    async fn the_next_address_is_asked_when_one_is_not_there_and_then_stays() {
        let (there, seen) = serve(vec![answer("200 OK", "", "a"), answer("503 Unavailable", "", "b")]);
        let client = client_of([nobody(), there.clone()]);
        assert_eq!(client.request("PUT", "/v1/a", Some("{}".into()), &[]).await.unwrap().body, "a");
        assert_eq!(client.address(), &there);
        // An answer is an answer, even of a server in trouble.
        assert_eq!(client.request("GET", "/v1/b", None, &[]).await.unwrap().status.as_u16(), 503);
        assert_eq!(seen.try_iter().count(), 2);

        let error = client_of([nobody(), nobody()]).request("GET", "/v1/x", None, &[]).await.unwrap_err();
        assert!(matches!(&error, ClientError::NoneAnswered(failures) if failures.len() == 2));
        assert_eq!(error.to_string().matches("connection refused").count(), 2, "{error}");
        assert!(error.was_not_sent());
    }

    /// Takes one request and closes the connection without an answer.
    fn hang_up() -> Address {
        serve(Vec::new()).0
    }

    #[tokio::test]
    async fn only_a_read_is_sent_again_after_it_may_have_arrived() {
        let (there, seen) = serve(vec![answer("200 OK", "", "a")]);
        let read = client_of([hang_up(), there.clone()]).request("GET", "/v1/a", None, &[]).await;
        assert_eq!(read.unwrap().body, "a");
        assert_eq!(seen.try_iter().count(), 1);

        for method in ["PUT", "POST", "PATCH", "DELETE"] {
            let error =
                client_of([hang_up(), there.clone()]).request(method, "/v1/a", None, &[]).await.unwrap_err();
            assert!(!error.was_not_sent(), "{error}");
        }
        assert_eq!(seen.try_iter().count(), 0);
    }

    #[test]
    fn a_redirect_from_tls_to_plain_text_is_refused() {
        let from = Address::parse("https://a").unwrap();
        assert!(redirect_target(&from, "http://a/v1/x").unwrap_err().contains("downgrade"));
        assert_eq!(redirect_target(&from, "https://b:1").unwrap().1, "/");
    }

    #[tokio::test]
    async fn an_answer_over_the_limit_and_a_silent_server_are_errors() {
        let (address, _seen) = serve(vec![answer("200 OK", "", "0123456789")]);
        let config = ClientConfig { max_response_bytes: 9, ..ClientConfig::new(address) };
        let error = Client::new(config).unwrap().request("GET", "/v1/x", None, &[]).await.unwrap_err();
        assert!(error.to_string().ends_with("response is larger than 9 bytes"), "{error}");

        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::parse(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
        let config = ClientConfig { timeout: Duration::from_millis(50), ..ClientConfig::new(address) };
        let error = Client::new(config).unwrap().request("GET", "/v1/x", None, &[]).await.unwrap_err();
        assert!(error.to_string().ends_with("context deadline exceeded"), "{error}");
    }

    #[tokio::test]
    async fn a_token_that_is_no_header_value_is_refused_without_being_shown() {
        let config = ClientConfig {
            token: Some(Token::new("s.abc\ndef")),
            ..ClientConfig::new(Address::parse("http://127.0.0.1:1").unwrap())
        };
        let error = Client::new(config).unwrap().request("GET", "/v1/x", None, &[]).await.unwrap_err();
        assert!(error.was_not_sent() && !error.to_string().contains("abc"));
    }
}
