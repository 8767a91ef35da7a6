//! The process that the module lives in: this program again, with a socket as its standard input.
//!
//! One thread reads the socket, so that the process ends with its node even while a call hangs; the other one works. It
//! never leaves by `exit`, under which modules have been seen to crash, but kills itself.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use rustix::process::{Resource, Signal, getpid, getrlimit, kill_process};

use super::protocol::{self, Failure, Reply, Request};
use super::token::Token;
use crate::secret;

/// The word that starts this program as a helper.
pub const HELPER_ROLE: &str = "hsm-helper";

/// Serves the socket at the standard input until its other end closes.
///
/// Comes back only if there is no socket, with the exit code.
#[must_use]
pub fn serve() -> i32 {
    let stream = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let stream = stream.and_then(|stream| stream.peer_addr().map(|_| stream));
    let Ok(mut input) = stream else { return 1 };
    let Ok(output) = input.try_clone() else { return 1 };
    protect();
    let (requests, queue) = mpsc::sync_channel(1);
    let worker = thread::Builder::new().name("hsm-module".to_owned()).spawn(move || work(&queue, output));
    if worker.is_err() {
        return 1;
    }
    while let Ok(Some(request)) = protocol::read(&mut input) {
        if requests.send(request).is_err() {
            break;
        }
    }
    end()
}

/// Keeps what is in memory out of core files, and out of swap where there is no limit to run into.
fn protect() {
    // A sandbox may forbid either; the node has said so for itself.
    let _ = secret::disable_core_dumps();
    if getrlimit(Resource::Memlock).current.is_none() {
        use rustix::mm::{MlockAllFlags, mlockall};
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    }
}

fn work(queue: &mpsc::Receiver<Request>, mut output: UnixStream) {
    let mut token = None;
    while let Ok(request) = queue.recv() {
        let reply = answer(&mut token, request).unwrap_or_else(Reply::Failed);
        if protocol::write(&mut output, &reply).is_err() {
            break;
        }
    }
    end();
}

fn answer(token: &mut Option<Token>, request: Request) -> Result<Reply, Failure> {
    if let Request::Open(target) = request {
        let (opened, facts) = Token::open(target)?;
        *token = Some(opened);
        return Ok(Reply::Opened(facts));
    }
    let Some(token) = token else {
        return Err(Failure::Unavailable(
            "the helper process was asked before it was told of a token".to_owned(),
        ));
    };
    match request {
        Request::Open(_) => unreachable!("it was handled above"),
        Request::Login(pin) => token.login(&pin).map(|()| Reply::Done),
        Request::Encrypt { kek, aad } => {
            token.encrypt(&kek, &aad).map(|(key_id, blob)| Reply::Sealed { key_id, blob })
        }
        Request::Decrypt { blob, aad } => token.decrypt(&blob, &aad).map(Reply::Kek),
        Request::Random { len } => Ok(token.random(len)?.map_or(Reply::NoRandom, Reply::Random)),
        Request::Facts => token.facts().map(Reply::Facts),
        Request::Generate { rotate } => token.generate(rotate).map(|()| Reply::Done),
    }
}

fn end() -> i32 {
    // Nothing of the module's runs any more after this; the kernel takes the memory back.
    let _ = kill_process(getpid(), Signal::KILL);
    1
}
