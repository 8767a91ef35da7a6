//! Handshakes over real sockets on loopback: who gets in on which port, and who does not.

mod api_client;
mod api_listener;
mod cluster_port;
mod loopback;
