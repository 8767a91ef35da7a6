//! Certificates and rustls configurations of Keystead's two ports
