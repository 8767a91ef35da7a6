//! Malformed bytes on the cluster port, by strangers and under a stolen certificate.

use std::{net::SocketAddr, time::Duration};

use keystead_chaos::{Cluster, node::copy_directory, process::resident_kib, raw};
use keystead_raft::{
    codec,
    conn::Method,
    frame::{self, Kind},
    hello::{Channel, Refusal},
};
use tokio::io::AsyncWriteExt as _;

use crate::{
    attacker::{Attacker, receive, send},
    common::ready,
};

const SOON: Duration = Duration::from_secs(20);

async fn stolen(cluster: &Cluster) -> (Attacker, usize, SocketAddr) {
    let leader = cluster.leader().await.unwrap();
    let stolen = cluster.others(leader)[0];
    cluster.at(stolen).stop().await.unwrap();
    let copy = cluster.directory().join("stolen");
    copy_directory(&cluster.at(stolen).data(), &copy).unwrap();
    (Attacker::with_stolen(&copy, &cluster.at(stolen).config()), leader, cluster.at(leader).config().cluster)
}

/// A frame's header with whatever it claims.
fn header(version: u8, kind: u8, length: u32) -> [u8; 16] {
    let mut header = [0; 16];
    (header[0], header[1]) = (version, kind);
    header[4..8].copy_from_slice(&length.to_be_bytes());
    header
}

#[tokio::test]
async fn case_30_strangers_get_nothing_from_the_cluster_port() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let port = cluster.at(leader).config().cluster;
    let noise: Vec<u8> = (0..20_000u32).map(|n| ((n * 7919) >> 3) as u8).collect();
    let patience = Duration::from_secs(2);
    for bytes in [&noise[..], b"GET / HTTP/1.1\r\n\r\n", b"", &[0x16, 3, 1, 0xff, 0xff], &header(1, 1, 10)] {
        let answer = raw::over_tcp(port, bytes, patience).await.unwrap_or_default();
        assert!(answer.len() < 100, "an alert at most: {} bytes", answer.len());
    }
    // TLS as on the API port: another CA, no client certificate, another protocol.
    assert!(raw::over_tls(port, cluster.tls(), b"x", patience).await.is_err());
    cluster.serves(leader, SOON).await.unwrap();
}

#[tokio::test]
async fn case_30_frames_that_lie_close_the_connection_and_nothing_else() {
    let cluster = ready().await;
    let (attacker, leader, port) = stolen(&cluster).await;
    let hello = codec::encode(&attacker.hello(Channel::Bulk));
    let length = hello.len() as u32;
    let before = resident_kib(cluster.at(leader).pid()).unwrap();

    // Instead of a hello.
    for first in [
        header(9, Kind::Hello as u8, length),
        header(0, Kind::Hello as u8, length),
        header(1, 0, length),
        header(1, 200, length),
        header(1, Kind::Hello as u8, u32::MAX),
        header(1, Kind::Hello as u8, frame::HELLO_LIMIT as u32 + 1),
        header(1, Kind::Call as u8, length),
        header(1, Kind::Hello as u8, length - 1),
        header(1, Kind::Hello as u8, 0),
    ] {
        let mut stream = attacker.connect(port).await.unwrap();
        stream.write_all(&first).await.unwrap();
        drop(stream.write_all(&hello).await);
        drop(stream.flush().await);
        match receive(&mut stream).await.unwrap() {
            None => {}
            Some(frame) => {
                assert_eq!(frame.kind, Kind::Refused, "{first:?}");
                let refusal: Refusal = codec::decode(&frame.payload).unwrap();
                assert_eq!(refusal, Refusal::Malformed, "{first:?}");
                assert!(receive(&mut stream).await.unwrap().is_none(), "{first:?}: closed after the refusal");
            }
        }
    }
    // A hello that is not the certificate's.
    let mut somebody = attacker.hello(Channel::Bulk);
    somebody.incarnation ^= 1;
    let mut stream = attacker.connect(port).await.unwrap();
    send(&mut stream, Kind::Hello, 0, &codec::encode(&somebody)).await.unwrap();
    assert_eq!(receive(&mut stream).await.unwrap().unwrap().kind, Kind::Refused);

    // After a good hello.
    for (kind, payload) in [
        (Kind::Append, &b"no append request"[..]),
        (Kind::Append, &[0xff; 64]),
        (Kind::Hello, &hello[..]),
        (Kind::Reply, b""),
        (Kind::Appended, b""),
    ] {
        let mut line = attacker.open(port, Channel::Bulk).await.unwrap();
        send(&mut line.stream, kind, 3, payload).await.unwrap();
        assert!(receive(&mut line.stream).await.unwrap().is_none(), "{kind:?} {payload:?}: closed");
    }
    let mut line = attacker.open(port, Channel::Bulk).await.unwrap();
    line.stream.write_all(&header(1, Kind::Append as u8, frame::REPLICATION_LIMIT as u32 + 1)).await.unwrap();
    line.stream.flush().await.unwrap();
    assert!(receive(&mut line.stream).await.unwrap().is_none(), "over the limit: closed");
    // Calls whose bodies make no sense are refused one by one.
    let mut line = attacker.open(port, Channel::Control).await.unwrap();
    for method in
        [Method::Vote, Method::PreVote, Method::TransferLeader, Method::Heartbeat, Method::SnapshotBegin]
    {
        for body in [&[][..], &[0xff; 7], &[0xff; 300]] {
            assert!(line.call(method, body).await.is_err(), "{method:?} {body:?}");
        }
    }
    for method in [Method::SnapshotPiece, Method::SnapshotEnd] {
        assert!(line.call(method, &[0; 16]).await.is_err(), "{method:?} without a beginning");
    }
    let grown = resident_kib(cluster.at(leader).pid()).unwrap().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
    cluster.serves(leader, SOON).await.unwrap();
}

#[tokio::test]
async fn case_30_promises_of_bulk_that_never_comes_take_no_memory_and_no_room_from_members() {
    let cluster = ready().await;
    let (attacker, leader, port) = stolen(&cluster).await;
    let before = resident_kib(cluster.at(leader).pid()).unwrap();
    let mut held = Vec::new();
    for n in 0..60 {
        let mut line = attacker.open(port, Channel::Bulk).await.unwrap();
        line.stream.write_all(&header(1, Kind::Append as u8, frame::REPLICATION_LIMIT as u32)).await.unwrap();
        line.stream.write_all(&[n; 100]).await.unwrap();
        line.stream.flush().await.unwrap();
        held.push(line);
    }
    // And handshakes that are begun and not gone on with.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(port).await.unwrap());
    }
    let grown = resident_kib(cluster.at(leader).pid()).unwrap().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB for 60 promises of 4 MiB");
    for at in cluster.others(leader) {
        cluster.serves(at, SOON).await.unwrap();
    }
    drop((held, silent));
}
