//! A connection that may be encrypted: what is read and written is plaintext, and what the socket does not take at once
//! waits here.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::tls::{Connector, Handshake, MAX_RECORD, Session};

/// What a buffer for [`Wire::read`] must have room for beside what is to be read at once.
pub const HEADROOM: usize = MAX_RECORD;

#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    cover: Cover,
    /// As it goes over the network.
    unsent: Vec<u8>,
}

#[derive(Debug)]
enum Cover {
    None,
    /// Is dropped when the handshake is over: it is large.
    Handshake(Box<Handshake>),
    Session(Box<Session>),
}

/// What a read has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// So many bytes of plaintext lie at the start of the buffer.
    pub length: usize,
    /// So many bytes came from the socket.
    pub raw: usize,
    /// Why nothing follows, if so.
    pub end: Option<&'static str>,
}

/// The peer has closed its end.
pub const CLOSED: &str = "the server closed the connection";

impl Wire {
    /// A connection that is being made, encrypted if there is a connector.
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

    /// The socket is connected: begins the handshake, if there is one.
    pub fn begin(&mut self) -> io::Result<()> {
        match &mut self.cover {
            Cover::Handshake(handshake) => handshake.send(&mut self.stream),
            _ => Ok(()),
        }
    }

    /// Whether the handshake, if there is one, is over.
    pub fn is_ready(&self) -> bool {
        !matches!(self.cover, Cover::Handshake(_))
    }

    /// Whether something waits for [`Self::flush`].
    pub fn is_waiting(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads what there is, as far as it fits into `buffer`.
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
            // Nothing is copied that the socket takes.
            _ => {
                let sent = send(&mut self.stream, bytes)?;
                self.unsent.extend_from_slice(&bytes[sent..]);
                return Ok(sent == bytes.len());
            }
        }
        self.flush()
    }

    /// Sends what is left; false if some of it still is.
    pub fn flush(&mut self) -> io::Result<bool> {
        let sent = send(&mut self.stream, &self.unsent)?;
        if sent < self.unsent.len() {
            self.unsent.drain(..sent);
            return Ok(false);
        }
        // Most connections send once and then never again.
        self.unsent = Vec::new();
        Ok(true)
    }
}

/// How much of `bytes` the socket takes.
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
