//! A network between the nodes' cluster ports, on which single links stall or break.
//!
//! In front of each cluster port stands a relay, and the nodes tell each other the relays' addresses. Who
//! dialled is found in the kernel's tables, so that a link, from one node to another, can be told from every
//! other. A stalled direction delivers nothing and closes nothing, as a real partition does; what was held comes
//! through when it is lifted.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

use crate::{Error, Result};

/// Which way bytes flow on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the node that dialled.
    Requests,
    /// From the node that was dialled.
    Replies,
}

/// The node that dialled (`None`: not one of the cluster's), the node that was dialled.
type Link = (Option<usize>, usize);

#[derive(Default, Clone)]
struct Rules {
    stalled: HashSet<(Link, Direction)>,
    /// Connections of a link that are older than its number here are closed.
    broken: Vec<(Link, u64)>,
}

struct Shared {
    rules: watch::Sender<Rules>,
    pids: Vec<Arc<AtomicU32>>,
    opened: Mutex<u64>,
}

/// The relays. They stop when this is dropped.
pub struct Net {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Net {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Net {
    /// Starts a relay for each node: (address to listen on, address to pass on to).
    ///
    /// # Errors
    /// [`Error::Io`] when an address is taken.
    pub async fn start(ends: &[(SocketAddr, SocketAddr)], pids: Vec<Arc<AtomicU32>>) -> Result<Self> {
        let shared = Arc::new(Shared { rules: watch::Sender::default(), pids, opened: Mutex::new(0) });
        let mut tasks = Vec::with_capacity(ends.len());
        for (owner, (front, back)) in ends.iter().enumerate() {
            let listener = TcpListener::bind(front).await.map_err(Error::io("relay"))?;
            tasks.push(tokio::spawn(relay(shared.clone(), owner, listener, *back)));
        }
        Ok(Self { shared, tasks })
    }

    /// Holds back what flows one way between a node that dials and a node that is dialled.
    pub fn stall(&self, dialler: usize, dialled: usize, direction: Direction) {
        self.shared.rules.send_modify(|rules| {
            rules.stalled.insert(((Some(dialler), dialled), direction));
        });
    }

    /// Cuts a node off from all others, both ways, without closing anything.
    pub fn isolate(&self, node: usize) {
        for other in (0..self.shared.pids.len()).filter(|other| *other != node) {
            for (dialler, dialled) in [(node, other), (other, node)] {
                self.stall(dialler, dialled, Direction::Requests);
                self.stall(dialler, dialled, Direction::Replies);
            }
        }
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.shared.rules.send_modify(|rules| rules.stalled.clear());
    }

    /// Closes every connection between two nodes that is there now; what was held on it is lost.
    pub fn cut(&self, dialler: usize, dialled: usize) {
        let now = *self.shared.opened.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.rules.send_modify(|rules| rules.broken.push(((Some(dialler), dialled), now)));
    }
}

async fn relay(shared: Arc<Shared>, owner: usize, listener: TcpListener, back: SocketAddr) {
    loop {
        let Ok((near, from)) = listener.accept().await else { continue };
        let shared = shared.clone();
        tokio::spawn(async move {
            let (Ok(local), Ok(far)) = (near.local_addr(), TcpStream::connect(back).await) else { return };
            drop((near.set_nodelay(true), far.set_nodelay(true)));
            let pids: Vec<u32> = shared.pids.iter().map(|pid| pid.load(Ordering::Acquire)).collect();
            let dialler = tokio::task::spawn_blocking(move || dialler_of(from, local, &pids)).await;
            let link = (dialler.unwrap_or(None), owner);
            let number = {
                let mut opened = shared.opened.lock().unwrap_or_else(PoisonError::into_inner);
                *opened += 1;
                *opened
            };
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            let rules = || shared.rules.subscribe();
            tokio::select! {
                () = pump(near_in, far_out, rules(), link, Direction::Requests) => {}
                () = pump(far_in, near_out, rules(), link, Direction::Replies) => {}
                () = broken(rules(), link, number) => {}
            }
        });
    }
}

/// Passes bytes on while the rules let them through; ends with the connection.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut rules: watch::Receiver<Rules>,
    link: Link,
    direction: Direction,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        let open = rules.wait_for(|rules| !rules.stalled.contains(&(link, direction))).await.is_ok();
        if read == 0 || !open || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn broken(mut rules: watch::Receiver<Rules>, link: Link, number: u64) {
    let cut = |rules: &Rules| rules.broken.iter().any(|(of, up_to)| *of == link && number <= *up_to);
    drop(rules.wait_for(cut).await);
}

/// Which of some processes holds the socket at `from` that is connected to `to`.
fn dialler_of(from: SocketAddr, to: SocketAddr, pids: &[u32]) -> Option<usize> {
    let inode = inode_of(from, to)?;
    let socket = format!("socket:[{inode}]");
    pids.iter().position(|pid| {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        *pid != 0
            && descriptors.flatten().any(|entry| {
                std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == socket.as_str())
            })
    })
}

/// The inode of an IPv4 socket, from the kernel's table (proc(5), `/proc/net/tcp`).
fn inode_of(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let (local, remote) = (kernel_form(local)?, kernel_form(remote)?);
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let matches = fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&remote.as_str());
        if matches { fields.get(9)?.parse().ok() } else { None }
    })
}

fn kernel_form(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    // The address is printed as the host's integer, whatever the host's byte order.
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ports;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(ports::loopback(0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        address
    }

    async fn says(stream: &mut TcpStream, at_most: Duration) -> Option<u8> {
        tokio::time::timeout(at_most, stream.read_u8()).await.ok()?.ok()
    }

    #[tokio::test]
    async fn a_stalled_direction_delivers_nothing_until_it_is_healed() {
        let front = ports::free().unwrap();
        let own = Arc::new(AtomicU32::new(std::process::id()));
        let nobody = Arc::new(AtomicU32::new(0));
        let net = Net::start(&[(front, echo().await)], vec![nobody, own]).await.unwrap();
        let mut stream = TcpStream::connect(front).await.unwrap();
        stream.write_u8(1).await.unwrap();
        assert_eq!(says(&mut stream, Duration::from_secs(5)).await, Some(1));

        // This process is number 1; a rule about number 0 is none of its business.
        net.stall(0, 0, Direction::Replies);
        stream.write_u8(2).await.unwrap();
        assert_eq!(says(&mut stream, Duration::from_secs(5)).await, Some(2));

        net.stall(1, 0, Direction::Replies);
        stream.write_u8(3).await.unwrap();
        assert_eq!(says(&mut stream, Duration::from_millis(200)).await, None);
        net.heal();
        assert_eq!(says(&mut stream, Duration::from_secs(5)).await, Some(3));
    }

    #[tokio::test]
    async fn a_cut_closes_what_is_there_and_loses_what_was_held() {
        let front = ports::free().unwrap();
        let own = Arc::new(AtomicU32::new(std::process::id()));
        let net = Net::start(&[(front, echo().await)], vec![own]).await.unwrap();
        let mut old = TcpStream::connect(front).await.unwrap();
        old.write_u8(1).await.unwrap();
        assert_eq!(says(&mut old, Duration::from_secs(5)).await, Some(1));
        net.stall(0, 0, Direction::Replies);
        old.write_u8(2).await.unwrap();
        net.cut(0, 0);
        net.heal();
        let end = tokio::time::timeout(Duration::from_secs(5), old.read_u8()).await.unwrap();
        assert!(end.is_err());
        let mut new = TcpStream::connect(front).await.unwrap();
        new.write_u8(3).await.unwrap();
        assert_eq!(says(&mut new, Duration::from_secs(5)).await, Some(3));
    }
}
