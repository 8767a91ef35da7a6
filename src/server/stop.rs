//! When a server stops: signals, a parent that is gone, a node that latched.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Why the server stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// SIGTERM or SIGINT.
    Signal,
    /// The development cluster's parent has ended.
    ParentGone,
}

/// Waits for a reason to stop. `reload` is called at every SIGHUP. With `parent`, standard input is a pipe from
/// the process that started this one, and its end is the parent's end.
///
/// # Errors
/// When signals cannot be listened for.
pub async fn wait(parent: bool, reload: impl Fn()) -> std::io::Result<Reason> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut gone = parent.then(parent_gone);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(Reason::Signal),
            _ = interrupt.recv() => return Ok(Reason::Signal),
            _ = hangup.recv() => reload(),
            () = ended(&mut gone) => return Ok(Reason::ParentGone),
        }
    }
}

async fn ended(gone: &mut Option<watch::Receiver<bool>>) {
    match gone {
        // An error means that the thread has ended, and so has standard input.
        Some(gone) => drop(gone.wait_for(|gone| *gone).await),
        None => std::future::pending().await,
    }
}

/// Watches standard input for its end on a thread: a read of a pipe cannot be cancelled.
fn parent_gone() -> watch::Receiver<bool> {
    let (tx, rx) = watch::channel(false);
    std::thread::spawn(move || {
        let mut sink = std::io::sink();
        // However the copy ends, there is no parent any more.
        drop(std::io::copy(&mut std::io::stdin().lock(), &mut sink));
        tx.send_replace(true);
    });
    rx
}
