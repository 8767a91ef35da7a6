//! A load generator that speaks HTTPS as a client library does: HTTP/1.1 over TLS 1.3, connections that are kept,
//! on each one request after another.
//!
//! It shares the machine with what it measures, so it is one thread, its requests are built beforehand, and of
//! an answer it reads the status and the length. Every status is looked at, and of one in [`SAMPLE`] the body.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, LocalSet},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    Result,
    requests::Request,
    usage::{self, Usage},
};

/// Of so many answers one is read to its end and compared.
const SAMPLE: u64 = 61;
/// How long background work of the servers is waited for.
const SETTLE: Duration = Duration::from_secs(10);
/// How long the servers must not have written for their work to count as done.
const QUIET: Duration = Duration::from_millis(600);
/// The largest answer, in bytes.
const ANSWER_LIMIT: usize = 64 << 10;

/// Where requests go.
#[derive(Clone)]
pub struct Target {
    /// The server's address.
    pub address: SocketAddr,
    /// What it is trusted by.
    pub tls: Arc<ClientConfig>,
    /// The processes whose work is counted.
    pub pids: Vec<u32>,
}

/// When to stop.
#[derive(Clone, Copy)]
pub enum Until {
    /// After a warm-up and so long a window.
    Elapsed(Duration),
    /// When every request has been sent once.
    Done,
}

/// What to send.
pub struct Plan {
    /// The requests; each connection goes round those that are its own.
    pub requests: Arc<Vec<Request>>,
    /// How many connections send at a time.
    pub connections: usize,
    /// When to stop.
    pub until: Until,
    /// Count the servers' work until they have stopped writing.
    pub settle: bool,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Answers per second in the window.
    pub per_second: f64,
    /// Half of the answers took at most this long.
    pub p50: Duration,
    /// 99 of 100 answers took at most this long.
    pub p99: Duration,
    /// Processor time of the generator per request.
    pub generator_cpu: Duration,
    /// Processor time per request, of each server process, warm-up and background work included.
    pub cpu: Vec<Duration>,
    /// Bytes written to files per request, of each server process.
    pub written: Vec<f64>,
    /// Resident memory of each server process at the end, in KiB.
    pub resident_kib: Vec<u64>,
    /// The share of the machine that others used meanwhile, 0 to 1.
    pub others: f64,
}

impl Seen {
    /// Processor time per request of all server processes.
    pub fn cpu_all(&self) -> Duration {
        self.cpu.iter().sum()
    }

    /// Bytes written per request by all server processes.
    pub fn written_all(&self) -> f64 {
        self.written.iter().sum()
    }
}

/// Sends requests and counts. On a thread of its own, so that no runtime of others is in the way.
///
/// # Errors
/// Any answer other than 2xx, any lost connection, any body in the sample that is not what it is to be.
pub async fn run(target: Target, plan: Plan) -> Result<Seen> {
    let (done, seen) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("load".into()).spawn(move || {
        let outcome = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Into::into)
            .and_then(|runtime| LocalSet::new().block_on(&runtime, measured(target, plan)));
        // Nobody waits any more when the run has ended otherwise.
        drop(done.send(outcome));
    })?;
    seen.await?
}

/// What the connections share.
struct Shared {
    requests: Arc<Vec<Request>>,
    connections: usize,
    once: bool,
    stopped: Cell<bool>,
    in_window: Cell<bool>,
    answered: Cell<u64>,
    nanos: RefCell<Vec<u32>>,
}

async fn measured(target: Target, plan: Plan) -> Result<Seen> {
    let shared = Rc::new(Shared {
        requests: plan.requests,
        connections: plan.connections,
        once: matches!(plan.until, Until::Done),
        stopped: Cell::new(false),
        in_window: Cell::new(matches!(plan.until, Until::Done)),
        answered: Cell::new(0),
        nanos: RefCell::new(Vec::with_capacity(1 << 20)),
    });
    let mut streams = Vec::new();
    for _ in 0..plan.connections {
        streams.push(connect(&target).await?);
    }
    let before = usage::of_all(&target.pids)?;
    let machine = usage::Machine::now()?;
    let (own, begun) = (usage::own()?, Instant::now());
    let mut clients = JoinSet::new();
    for (number, stream) in streams.into_iter().enumerate() {
        clients.spawn_local(client(stream, shared.clone(), number));
    }
    let mut window = begun;
    if let Until::Elapsed(length) = plan.until {
        tokio::time::sleep(length / 5).await;
        shared.in_window.set(true);
        window = Instant::now();
        tokio::time::sleep(length).await;
        shared.in_window.set(false);
    }
    let mut window_length = window.elapsed();
    shared.stopped.set(true);
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    if shared.once {
        window_length = window.elapsed();
    }
    let own = usage::own()? - own;
    let elapsed = begun.elapsed();
    let mut after = usage::of_all(&target.pids)?;
    let servers: Duration = after.iter().zip(&before).map(|(after, before)| after.cpu - before.cpu).sum();
    let others = machine.others(own + servers, elapsed)?;
    if plan.settle {
        after = settled(&target.pids).await?;
    }
    Ok(Seen { others, ..summary(&shared, window_length, own, &before, &after) })
}

fn summary(shared: &Shared, window: Duration, own: Duration, before: &[Usage], after: &[Usage]) -> Seen {
    let mut nanos = shared.nanos.borrow_mut();
    nanos.sort_unstable();
    let at = |hundredth: usize| {
        let place = (nanos.len() * hundredth / 100).min(nanos.len().saturating_sub(1));
        Duration::from_nanos(nanos.get(place).copied().unwrap_or(0).into())
    };
    let requests = shared.answered.get().max(1);
    let each = |cpu: Duration| Duration::from_nanos((cpu.as_nanos() / u128::from(requests)) as u64);
    let pairs = || before.iter().zip(after);
    Seen {
        per_second: nanos.len() as f64 / window.as_secs_f64(),
        p50: at(50),
        p99: at(99),
        generator_cpu: each(own),
        cpu: pairs().map(|(before, after)| each(after.cpu - before.cpu)).collect(),
        written: pairs().map(|(a, b)| (b.written - a.written) as f64 / requests as f64).collect(),
        resident_kib: after.iter().map(|usage| usage.resident_kib).collect(),
        others: 0.0,
    }
}

/// Waits until the servers have done what they put off, and gives their usage then.
async fn settled(pids: &[u32]) -> Result<Vec<Usage>> {
    let written = |usages: &[Usage]| usages.iter().map(|usage| usage.written).sum::<u64>();
    let deadline = Instant::now() + SETTLE;
    let mut last = usage::of_all(pids)?;
    while Instant::now() < deadline {
        tokio::time::sleep(QUIET).await;
        let now = usage::of_all(pids)?;
        // A leader writes a little for itself all the time.
        if written(&now) - written(&last) < 100_000 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

async fn connect(target: &Target) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(target.address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::from(target.address.ip());
    Ok(TlsConnector::from(target.tls.clone()).connect(name, stream).await?)
}

/// One connection: of all requests those whose number is its own, modulo the connections, so that no two
/// connections ever write the same key.
async fn client(mut stream: TlsStream<TcpStream>, shared: Rc<Shared>, number: usize) -> Result<()> {
    let mut buffer = vec![0; ANSWER_LIMIT];
    let own: Vec<&Request> = shared.requests.iter().skip(number).step_by(shared.connections).collect();
    // Who starts all at the same place would ask for neighbours at the same time.
    let mut at = if shared.once || own.is_empty() { 0 } else { number * 7 % own.len() };
    let mut sent = 0u64;
    while !own.is_empty() && (shared.once || !shared.stopped.get()) {
        let request = own[at];
        let begun = Instant::now();
        stream.write_all(&request.bytes).await?;
        stream.flush().await?;
        let answer = read_answer(&mut stream, &mut buffer).await?;
        if shared.in_window.get() {
            let nanos = u32::try_from(begun.elapsed().as_nanos()).unwrap_or(u32::MAX);
            shared.nanos.borrow_mut().push(nanos);
        }
        shared.answered.set(shared.answered.get() + 1);
        let body = &buffer[answer.body_begins..answer.ends];
        if !(200..300).contains(&answer.status) {
            let body = String::from_utf8_lossy(body);
            return Err(format!("status {} to {}: {body}", answer.status, request.line()).into());
        }
        if sent.is_multiple_of(SAMPLE) && !request.is_answered_by(body) {
            return Err(format!("{}: {}", request.line(), String::from_utf8_lossy(body)).into());
        }
        sent += 1;
        at += 1;
        if at == own.len() {
            if shared.once {
                return Ok(());
            }
            at = 0;
        }
    }
    Ok(())
}

/// Where in the buffer an answer lies.
struct Answer {
    status: u16,
    body_begins: usize,
    ends: usize,
}

async fn read_answer(stream: &mut TlsStream<TcpStream>, buffer: &mut [u8]) -> Result<Answer> {
    let (mut filled, mut answer) = (0, None::<Answer>);
    loop {
        if let Some(answer) = answer.take_if(|answer| filled >= answer.ends) {
            return if filled == answer.ends {
                Ok(answer)
            } else {
                Err("more was answered than asked".into())
            };
        }
        let more = stream.read(&mut buffer[filled..]).await?;
        if more == 0 {
            return Err("the server closed a connection, or its answer was too long".into());
        }
        filled += more;
        if answer.is_none() {
            answer = parse_head(&buffer[..filled])?;
        }
    }
}

/// Status and length, once the head is complete.
fn parse_head(bytes: &[u8]) -> Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = &bytes[..end];
    let status = head.get(9..12).and_then(|code| std::str::from_utf8(code).ok()?.parse().ok());
    let status: u16 = status.ok_or("no HTTP/1.1 status")?;
    let mut length = None;
    for line in head.split(|byte| *byte == b'\n') {
        const NAME: &[u8] = b"content-length:";
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            length = std::str::from_utf8(&line[NAME.len()..])?.trim().parse().ok();
        }
    }
    let length: usize = match (length, status) {
        (Some(length), _) => length,
        (None, 204) => 0,
        (None, _) => return Err("an answer without Content-Length".into()),
    };
    Ok(Some(Answer { status, body_begins: end + 4, ends: end + 4 + length }))
}
