//! A connection, optionally encrypted: callers read and write plaintext; output that the socket does not take at once
//! is queued here.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::tls::{Connector, Handshake, MAX_RECORD, Session};

/// Room that a buffer for [`Wire::read`] needs in addition to the data of one read.
pub const HEADROOM: usize = MAX_RECORD;

#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    cover: Cover,
    /// Output in wire format.
    unsent: Vec<u8>,
}

#[derive(Debug)]
enum Cover {
    None,
    /// Dropped after the handshake: it is large.
    Handshake(Box<Handshake>),
    Session(Box<Session>),
}

/// Result of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// Bytes of plaintext at the start of the buffer.
    pub length: usize,
    /// Bytes read from the socket.
    pub raw: usize,
    /// Reason for the end of the stream, if it has ended.
    pub end: Option<&'static str>,
}

/// The peer has closed its end.
pub const CLOSED: &str = "the server closed the connection";

impl Wire {
    /// A connection being established, encrypted if there is a connector.
    pub fn new(stream: TcpStream, connector: Option<&Connector>) -> io::Result<Self> {
        let cover = match connector {
            None => Cover::None,
            Some(connector) => Cover::Handshake(Box::new(connector.start()?)),
        };
        Ok(Self {
            stream,
            cover,
            unsent: Vec::new(),
        })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The socket is connected: starts the handshake, if any.
    pub fn begin(&mut self) -> io::Result<()> {
        match &mut self.cover {
            Cover::Handshake(handshake) => handshake.send(&mut self.stream),
            _ => Ok(()),
        }
    }

    /// Whether the connection needs no handshake or has completed it.
    pub fn is_ready(&self) -> bool {
        !matches!(self.cover, Cover::Handshake(_))
    }

    /// Whether output waits for [`Self::flush`].
    pub fn is_waiting(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads available data, as far as it fits into `buffer`.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Got> {
        let kept = match &self.cover {
            Cover::Session(session) => session.restore(buffer),
            _ => 0,
        };
        let raw = self.stream.read(&mut buffer[kept..])?;
        if raw == 0 {
            let end = match self.cover {
                Cover::None => CLOSED,
                Cover::Handshake(_) => "the server closed the connection in the TLS handshake",
                Cover::Session(_) => "the server closed the connection without close_notify",
            };
            return Ok(Got {
                end: Some(end),
                ..Got::default()
            });
        }
        let mut came = kept + raw;
        if let Cover::Handshake(handshake) = &mut self.cover {
            let Some((session, behind)) = handshake.receive(&buffer[..raw], &mut self.stream)? else {
                return Ok(Got { raw, ..Got::default() });
            };
            buffer[..behind.len()].copy_from_slice(&behind);
            came = behind.len();
            self.cover = Cover::Session(Box::new(session));
        }
        let Cover::Session(session) = &mut self.cover else {
            return Ok(Got {
                length: raw,
                raw,
                end: None,
            });
        };
        let opened = session.open(&mut buffer[..came])?;
        if opened.wants_key_update {
            session.seal_key_update(&mut self.unsent)?;
            self.flush()?;
        }
        Ok(Got {
            length: opened.length,
            raw,
            end: opened.closed.then_some(CLOSED),
        })
    }

    /// Sends `bytes`, or as much of them as fits; false if some wait for [`Self::flush`].
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<bool> {
        match &mut self.cover {
            Cover::Session(session) => session.seal(bytes, &mut self.unsent)?,
            _ if !self.unsent.is_empty() => self.unsent.extend_from_slice(bytes),
            // Bytes that the socket takes are not copied.
            _ => {
                let sent = send(&mut self.stream, bytes)?;
                self.unsent.extend_from_slice(&bytes[sent..]);
                return Ok(sent == bytes.len());
            }
        }
        self.flush()
    }

    /// Sends queued output; false if some is left.
    pub fn flush(&mut self) -> io::Result<bool> {
        let sent = send(&mut self.stream, &self.unsent)?;
        if sent < self.unsent.len() {
            self.unsent.drain(..sent);
            return Ok(false);
        }
        // Free the buffer: most connections send once and then never again.
        self.unsent = Vec::new();
        Ok(true)
    }
}

/// Sends `bytes`; returns how many the socket takes.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(length) => sent += length,
            Err(error) if is_unready(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Not connected yet, or no room in the socket.
pub fn is_unready(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
