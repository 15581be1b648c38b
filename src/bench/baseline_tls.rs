//! The baseline over TLS: one `SSL_write` per subscriber and message, by OpenSSL as in nginx.
//!
//! Buffers of idle connections are released; everything else is OpenSSL's memory per connection.

use std::io::{self, Read, Write};
use std::os::fd::RawFd;

use anyhow::Context;
use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{ErrorCode, Ssl, SslAcceptor, SslContext, SslMethod, SslMode, SslStream};
use openssl::x509::{X509, X509NameBuilder};

use crate::net;

/// A server context with a self-signed certificate.
pub fn context() -> anyhow::Result<SslContext> {
    let (key, certificate) = identity()?;
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).context("no TLS")?;
    builder.set_mode(SslMode::RELEASE_BUFFERS | SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    builder.set_private_key(&key)?;
    builder.set_certificate(&certificate)?;
    Ok(builder.build().into_context())
}

/// A key and its self-signed certificate.
pub fn identity() -> anyhow::Result<(PKey<Private>, X509)> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let certificate = certificate(&key)?;
    Ok((key, certificate))
}

fn certificate(key: &PKey<Private>) -> anyhow::Result<X509> {
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_text("CN", "baseline")?;
    let name = name.build();
    let mut builder = X509::builder()?;
    builder.set_version(2)?;
    builder.set_subject_name(&name)?;
    builder.set_issuer_name(&name)?;
    builder.set_pubkey(key)?;
    let (start, end) = (Asn1Time::days_from_now(0)?, Asn1Time::days_from_now(365)?);
    builder.set_not_before(&start)?;
    builder.set_not_after(&end)?;
    builder.sign(key, MessageDigest::sha256())?;
    Ok(builder.build())
}

/// The encrypted connections of a worker, by descriptor.
#[derive(Debug)]
pub struct Encryption {
    context: SslContext,
    connections: Vec<Option<SslStream<Socket>>>,
}

/// A socket owned elsewhere.
#[derive(Debug)]
struct Socket(RawFd);

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        net::receive(self.0, into)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        net::send(self.0, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Encryption {
    pub fn new(context: SslContext) -> Self {
        Self {
            context,
            connections: Vec::new(),
        }
    }

    /// Adds a connection; its handshake proceeds as it is read.
    pub fn accept(&mut self, fd: RawFd) -> io::Result<()> {
        let mut ssl = Ssl::new(&self.context)?;
        ssl.set_accept_state();
        let slot = fd as usize;
        if slot >= self.connections.len() {
            self.connections.resize_with(slot + 1, || None);
        }
        self.connections[slot] = Some(SslStream::new(ssl, Socket(fd))?);
        Ok(())
    }

    pub fn close(&mut self, fd: RawFd) {
        if let Some(connection) = self.connections.get_mut(fd as usize) {
            *connection = None;
        }
    }

    /// As [`net::receive`].
    pub fn receive(&mut self, fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
        match self.connection(fd)?.ssl_read(into) {
            Ok(length) => Ok(length),
            Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
            Err(error) => Err(to_io(error)),
        }
    }

    /// As [`net::send`].
    pub fn send(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
        self.connection(fd)?.ssl_write(bytes).map_err(to_io)
    }

    fn connection(&mut self, fd: RawFd) -> io::Result<&mut SslStream<Socket>> {
        let connection = self.connections.get_mut(fd as usize).and_then(Option::as_mut);
        connection.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
    }
}

fn to_io(error: openssl::ssl::Error) -> io::Error {
    match error.code() {
        ErrorCode::WANT_READ | ErrorCode::WANT_WRITE => io::ErrorKind::WouldBlock.into(),
        _ => error.into_io_error().unwrap_or_else(io::Error::other),
    }
}
