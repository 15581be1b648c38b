//! The client side of TLS 1.3 (RFC 8446), with minimal memory per connection.
//!
//! rustls does the handshake. After it a connection needs only the two traffic secrets and the numbers of the next
//! records, which are obtained through the key log: [`Session`] opens and seals records with these, and rustls'
//! connection, which takes some ten kilobytes, is dropped. Certificates are not checked: the server under test is the
//! user's own.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{self, Prk};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CipherSuite, DigitallySignedStruct, KeyLog, SignatureScheme};

/// The protocol above TLS, negotiated by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Starts handshakes with one server.
#[derive(Debug)]
pub struct Connector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    secrets: Arc<Secrets>,
    protocol: Protocol,
}

impl Connector {
    /// For the server whose `Host` is `authority`; `address` replaces a host that is not a name.
    pub fn new(authority: &str, address: SocketAddr, protocol: Protocol) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let secrets = Arc::new(Secrets::default());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("no TLS 1.3")?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.name().to_vec()];
        config.key_log = Arc::clone(&secrets) as Arc<dyn KeyLog>;
        config.resumption = Resumption::disabled();
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).unwrap_or(ServerName::IpAddress(address.ip().into()));
        Ok(Self {
            config: Arc::new(config),
            name,
            secrets,
            protocol,
        })
    }

    /// Starts a handshake.
    pub fn start(&self) -> io::Result<Handshake> {
        Ok(Handshake {
            connection: ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(io::Error::other)?,
            secrets: Arc::clone(&self.secrets),
            protocol: self.protocol,
            input: Vec::new(),
        })
    }
}

/// A handshake under way.
#[derive(Debug)]
pub struct Handshake {
    connection: ClientConnection,
    secrets: Arc<Secrets>,
    protocol: Protocol,
    /// An incomplete record.
    input: Vec<u8>,
}

impl Handshake {
    /// Sends pending output. A socket that does not take it at once is an error: its buffer is empty at this time.
    pub fn send(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(stream)?;
        }
        Ok(())
    }

    /// Handles input from the server and answers it. After the handshake: returns the session, and the input after it.
    pub fn receive(&mut self, bytes: &[u8], stream: &mut impl Write) -> io::Result<Option<(Session, Vec<u8>)>> {
        self.input.extend_from_slice(bytes);
        let mut used = 0;
        // Record by record: input that rustls has not seen when the handshake is over is for the session.
        while let Some(length) = record_length(&self.input[used..])? {
            let Some(mut record) = self.input.get(used..used + length) else {
                break;
            };
            while !record.is_empty() {
                self.connection.read_tls(&mut record)?;
            }
            used += length;
            let processed = self.connection.process_new_packets().map_err(io::Error::other);
            // Also sends the alert on an error.
            self.send(stream)?;
            processed?;
            if !self.connection.is_handshaking() {
                let session = self.session()?;
                return Ok(Some((session, self.input.split_off(used))));
            }
        }
        self.input.drain(..used);
        Ok(None)
    }

    fn session(&self) -> io::Result<Session> {
        if self.protocol == Protocol::Http2 && self.connection.alpn_protocol() != Some(self.protocol.name()) {
            return Err(io::Error::other("the server does not offer HTTP/2"));
        }
        let suite = self.connection.negotiated_cipher_suite().map(|suite| suite.suite());
        let suite = suite
            .and_then(Suite::of)
            .ok_or(io::Error::other("an unknown cipher suite"))?;
        let (server, client) = self.secrets.take().ok_or(io::Error::other("no traffic secrets"))?;
        Session::new(suite, &server, &client).ok_or(io::Error::other("traffic secrets of a wrong length"))
    }
}

/// The length of the record at the start of `bytes`, its header included; `None` while the header is incomplete.
fn record_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if length > MAX_CIPHERTEXT || header[1] != 3 {
        return Err(io::Error::other("bytes that are no TLS record"));
    }
    Ok(Some(HEADER_BYTES + length))
}

/// Stores the traffic secrets of the completed handshake. Only the thread that takes them does handshakes.
#[derive(Debug, Default)]
struct Secrets(Mutex<Caught>);

#[derive(Debug, Default)]
struct Caught {
    server: Option<Vec<u8>>,
    client: Option<Vec<u8>>,
}

impl Secrets {
    fn take(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let caught = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        caught.server.zip(caught.client)
    }
}

const SERVER_SECRET: &str = "SERVER_TRAFFIC_SECRET_0";
const CLIENT_SECRET: &str = "CLIENT_TRAFFIC_SECRET_0";

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut caught = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match label {
            SERVER_SECRET => caught.server = Some(secret.to_vec()),
            CLIENT_SECRET => caught.client = Some(secret.to_vec()),
            _ => {}
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == SERVER_SECRET || label == CLIENT_SECRET
    }
}

/// Accepts every certificate, but verifies signatures, so that a handshake has its usual cost.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;

/// Maximum plaintext of a record, and maximum record after its header (RFC 8446 §5.1, §5.2).
const MAX_PLAINTEXT: usize = 16_384;
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;

/// Maximum record with its header: a buffer must have room for an incomplete earlier one.
pub const MAX_RECORD: usize = HEADER_BYTES + MAX_CIPHERTEXT;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// A cipher suite of TLS 1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suite {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Suite {
    fn of(suite: CipherSuite) -> Option<Self> {
        match suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(Self::Aes128Gcm),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(Self::Aes256Gcm),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => hkdf::HKDF_SHA256,
            Self::Aes256Gcm => hkdf::HKDF_SHA384,
        }
    }

    /// Length of a traffic secret: that of the suite's hash.
    fn secret_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => 32,
            Self::Aes256Gcm => 48,
        }
    }
}

const MAX_SECRET: usize = 48;
const MAX_KEY: usize = 32;
const IV_BYTES: usize = 12;

/// One direction's traffic secret, and the number of its next record.
struct Secret {
    bytes: [u8; MAX_SECRET],
    number: u64,
}

/// Key material expanded from a secret.
struct Key {
    key: [u8; MAX_KEY],
    iv: [u8; IV_BYTES],
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl Secret {
    fn new(suite: Suite, secret: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_SECRET];
        bytes.get_mut(..suite.secret_bytes())?.copy_from_slice(secret);
        Some(Self { bytes, number: 0 })
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
    fn expand(&self, suite: Suite, label: &str, out: &mut [u8]) {
        let length = (out.len() as u16).to_be_bytes();
        let label_bytes = [6 + label.len() as u8];
        let info: [&[u8]; 5] = [&length, &label_bytes, b"tls13 ", label.as_bytes(), &[0]];
        let prk = Prk::new_less_safe(suite.hkdf(), &self.bytes[..suite.secret_bytes()]);
        let expanded = prk.expand(&info, Length(out.len())).and_then(|okm| okm.fill(out));
        // Fails only for a length of more than 255 hashes.
        debug_assert!(expanded.is_ok());
    }

    fn key(&self, suite: Suite) -> Key {
        let (mut key, mut iv) = ([0; MAX_KEY], [0; IV_BYTES]);
        self.expand(suite, "key", &mut key[..suite.aead().key_len()]);
        self.expand(suite, "iv", &mut iv);
        Key { key, iv }
    }

    /// The secret after a KeyUpdate (RFC 8446 §7.2).
    fn update(&mut self, suite: Suite) {
        let mut next = [0; MAX_SECRET];
        self.expand(suite, "traffic upd", &mut next[..suite.secret_bytes()]);
        *self = Self { bytes: next, number: 0 };
    }

    /// The nonce of the next record.
    fn nonce(&mut self, iv: [u8; IV_BYTES]) -> Nonce {
        let mut nonce = iv;
        let number = self.number.to_be_bytes();
        nonce[4..]
            .iter_mut()
            .zip(number)
            .for_each(|(byte, digit)| *byte ^= digit);
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Key {
    fn aead(&self, suite: Suite) -> Option<LessSafeKey> {
        let key = UnboundKey::new(suite.aead(), &self.key[..suite.aead().key_len()]).ok()?;
        Some(LessSafeKey::new(key))
    }
}

/// A connection after its handshake: everything needed to open and seal records.
pub struct Session {
    suite: Suite,
    server: Secret,
    /// Key of [`Self::server`]: opens every record.
    server_key: Key,
    /// Its key is derived when something is sent, which is rare.
    client: Secret,
    /// An incomplete record.
    rest: Box<[u8]>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (received, sent) = (self.server.number, self.client.number);
        write!(f, "Session({:?}, {received} records received, {sent} sent)", self.suite)
    }
}

/// Result of opening records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of plaintext at the start of the buffer.
    pub length: usize,
    /// The server has sent close_notify.
    pub closed: bool,
    /// The server requests a key update: [`Session::seal_key_update`].
    pub wants_key_update: bool,
}

impl Session {
    fn new(suite: Suite, server: &[u8], client: &[u8]) -> Option<Self> {
        if server.len() != suite.secret_bytes() || client.len() != suite.secret_bytes() {
            return None;
        }
        let server = Secret::new(suite, server)?;
        Some(Self {
            server_key: server.key(suite),
            server,
            client: Secret::new(suite, client)?,
            suite,
            rest: Box::default(),
        })
    }

    /// Copies an incomplete earlier record to the start of `buffer`; new input belongs after it.
    pub fn restore(&self, buffer: &mut [u8]) -> usize {
        buffer[..self.rest.len()].copy_from_slice(&self.rest);
        self.rest.len()
    }

    /// Opens all complete records in `buffer` in place and keeps the rest for [`Self::restore`].
    pub fn open(&mut self, buffer: &mut [u8]) -> io::Result<Opened> {
        let mut opened = Opened::default();
        let mut used = 0;
        let mut key = None;
        while let Some(length) = record_length(&buffer[used..])? {
            let end = used + length;
            if end > buffer.len() || opened.closed {
                break;
            }
            if key.is_none() {
                key = self.server_key.aead(self.suite);
            }
            let key_now = key.as_ref().ok_or(io::Error::other("no key"))?;
            let mut header = [0; HEADER_BYTES];
            header.copy_from_slice(&buffer[used..used + HEADER_BYTES]);
            let nonce = self.server.nonce(self.server_key.iv);
            let behind_header = used + HEADER_BYTES - opened.length;
            let plain = key_now
                .open_within(
                    nonce,
                    Aad::from(header),
                    &mut buffer[opened.length..end],
                    behind_header..,
                )
                .map_err(|_| io::Error::other("a TLS record that cannot be authenticated"))?;
            // Padding: zeroes after the content type.
            let Some(last) = plain.iter().rposition(|byte| *byte != 0) else {
                return Err(io::Error::other("a TLS record without a type"));
            };
            let (content, kind) = (&plain[..last], plain[last]);
            match kind {
                APPLICATION_DATA => opened.length += last,
                HANDSHAKE => {
                    if self.post_handshake(content, &mut opened)? {
                        key = None;
                    }
                }
                ALERT if content == [1, 0] => opened.closed = true,
                ALERT => return Err(io::Error::other(format!("the TLS alert {content:?}"))),
                _ => return Err(io::Error::other(format!("a TLS record of type {kind}"))),
            }
            used = end;
        }
        if used < buffer.len() || !self.rest.is_empty() {
            self.rest = buffer[used..].into();
        }
        Ok(opened)
    }

    /// Handles messages after the handshake. Returns whether the server's key has changed.
    fn post_handshake(&mut self, mut messages: &[u8], opened: &mut Opened) -> io::Result<bool> {
        let mut updated = false;
        while !messages.is_empty() {
            let message = messages.first_chunk::<4>().and_then(|head| {
                let length = u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize;
                Some((head[0], messages.get(4..4 + length)?))
            });
            let Some((kind, body)) = message else {
                return Err(io::Error::other("a TLS handshake message in pieces"));
            };
            messages = &messages[4 + body.len()..];
            match (kind, body) {
                (NEW_SESSION_TICKET, _) => {}
                // It must be the last message in its record.
                (KEY_UPDATE, [wanted @ (0 | 1)]) if messages.is_empty() => {
                    self.server.update(self.suite);
                    self.server_key = self.server.key(self.suite);
                    opened.wants_key_update |= *wanted == 1;
                    updated = true;
                }
                _ => return Err(io::Error::other(format!("a TLS handshake message of type {kind}"))),
            }
        }
        Ok(updated)
    }

    /// Adds `plain`, sealed as records, to `out`.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        plain
            .chunks(MAX_PLAINTEXT)
            .try_for_each(|part| self.seal_record(APPLICATION_DATA, part, out))
    }

    /// Adds the answer to a key update request, and changes the key.
    pub fn seal_key_update(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.seal_record(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        self.client.update(self.suite);
        Ok(())
    }

    fn seal_record(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let failed = || io::Error::other("a TLS record cannot be sealed");
        let key = self.client.key(self.suite);
        let nonce = self.client.nonce(key.iv);
        let length = ((plain.len() + 1 + TAG_BYTES) as u16).to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, length[0], length[1]];
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(plain);
        out.push(kind);
        let aead = key.aead(self.suite).ok_or_else(failed)?;
        let tag = aead.seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..]);
        out.extend_from_slice(tag.map_err(|_| failed())?.as_ref());
        Ok(())
    }
}

/// A blocking connection for a single request, with rustls only.
pub fn ask(connector: &Connector, stream: std::net::TcpStream, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let connection = ClientConnection::new(Arc::clone(&connector.config), connector.name.clone())?;
    let mut stream = rustls::StreamOwned::new(connection, stream);
    stream.write_all(request)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A server may close without close_notify; the length shows whether the answer is complete.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        read => drop(read?),
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::thread::{self, JoinHandle};

    use foreign_types::ForeignTypeRef;
    use openssl::ssl::{Ssl, SslContext, SslRef, SslStream};

    use super::*;
    use crate::baseline_tls;
    use crate::wire::{Got, HEADROOM, Wire};

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let (pairs, _) = digits.as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        pairs.iter().map(byte).collect()
    }

    #[test]
    fn keys_are_those_of_rfc_8448() {
        let secret = bytes("a11af9f05531f856ad47116b45a95032 8204b4f44bfb6b3a4b4f1f3fcb631643");
        let key = Secret::new(Suite::Aes128Gcm, &secret).unwrap().key(Suite::Aes128Gcm);
        assert_eq!(key.key[..16], bytes("9f02283b6c9c07efc26bb9f2ac92e356"));
        assert_eq!(key.iv.as_slice(), bytes("cf782b88dd83549aadf1e984"));
    }

    #[test]
    fn a_session_is_small() {
        // Besides the socket, this is the whole cost of an idle encrypted client.
        assert!(size_of::<Session>() <= 216, "{}", size_of::<Session>());
        assert!(size_of::<Wire>() <= 48, "{}", size_of::<Wire>());
    }

    unsafe extern "C" {
        fn SSL_key_update(ssl: *mut openssl_sys::SSL, kind: libc::c_int) -> libc::c_int;
    }

    /// Makes the server change its key with its next record, and optionally request the client's.
    fn update_key(ssl: &SslRef, ask: bool) {
        // SAFETY: the pointer is that of a living SSL, which this thread alone uses.
        assert_eq!(unsafe { SSL_key_update(ssl.as_ptr(), libc::c_int::from(ask)) }, 1);
    }

    /// A client, and a server running in a thread.
    fn pair<T: Send + 'static>(
        suite: &str,
        protocol: Protocol,
        serve: impl FnOnce(&mut SslStream<TcpStream>) -> T + Send + 'static,
    ) -> (Wire, JoinHandle<T>) {
        let mut context = SslContext::builder(openssl::ssl::SslMethod::tls_server()).unwrap();
        let (key, certificate) = baseline_tls::identity().unwrap();
        context.set_private_key(&key).unwrap();
        context.set_certificate(&certificate).unwrap();
        context.set_ciphersuites(suite).unwrap();
        let context = context.build();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = SslStream::new(Ssl::new(&context).unwrap(), stream).unwrap();
            stream.accept().unwrap();
            serve(&mut stream)
        });
        let connector = Connector::new("localhost:1", address, protocol).unwrap();
        let mut wire = Wire::new(TcpStream::connect(address).unwrap(), Some(&connector)).unwrap();
        wire.begin().unwrap();
        (wire, server)
    }

    /// Reads to the end, in reads of `step` bytes plus the kept record.
    fn read_all(wire: &mut Wire, step: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; HEADROOM + step];
        loop {
            let Got { length, end, .. } = wire.read(&mut buffer)?;
            all.extend_from_slice(&buffer[..length]);
            if end.is_some() {
                return Ok(all);
            }
        }
    }

    fn shake_hands(wire: &mut Wire) {
        let mut buffer = vec![0; 2 * HEADROOM];
        while !wire.is_ready() {
            assert_eq!(wire.read(&mut buffer).unwrap().length, 0);
        }
    }

    #[test]
    fn all_suites_and_key_updates_both_ways() {
        for suite in [
            "TLS_AES_128_GCM_SHA256",
            "TLS_AES_256_GCM_SHA384",
            "TLS_CHACHA20_POLY1305_SHA256",
        ] {
            let (mut wire, server) = pair(suite, Protocol::Http1, |stream| {
                let mut heard = [0; 6];
                stream.read_exact(&mut heard[..3]).unwrap();
                for (text, ask) in [(b"one", false), (b"two", true), (b"six", true)] {
                    stream.write_all(text).unwrap();
                    update_key(stream.ssl(), ask);
                }
                stream.write_all(&[b'x'; 40_000]).unwrap();
                stream.read_exact(&mut heard[3..]).unwrap();
                stream.shutdown().unwrap();
                heard
            });
            shake_hands(&mut wire);
            assert!(wire.write(b"abc").unwrap());
            let mut buffer = vec![0; 64 * 1024 + HEADROOM];
            let mut all = Vec::new();
            while all.len() < 40_009 {
                let got = wire.read(&mut buffer).unwrap();
                all.extend_from_slice(&buffer[..got.length]);
            }
            assert!(wire.write(b"def").unwrap());
            assert_eq!(
                wire.read(&mut buffer).unwrap().end,
                Some(crate::wire::CLOSED),
                "{suite}"
            );
            assert!(all.starts_with(b"onetwosixxx") && all.len() == 40_009, "{suite}");
            assert_eq!(server.join().unwrap(), *b"abcdef", "{suite}");
        }
    }

    #[test]
    fn records_are_whole_however_they_are_read() {
        for step in [1, 7, 4_000] {
            let (mut wire, server) = pair("TLS_AES_128_GCM_SHA256", Protocol::Http1, |stream| {
                for length in [1, 5, 300, 16_384, 20_000] {
                    stream.write_all(&vec![b'x'; length]).unwrap();
                }
                stream.shutdown().unwrap();
            });
            // HEADROOM is for a kept record: such small reads bring it piece by piece.
            shake_hands(&mut wire);
            assert_eq!(read_all(&mut wire, step).unwrap().len(), 36_690);
            server.join().unwrap();
        }
    }

    #[test]
    fn an_end_without_close_notify_is_told_apart() {
        let (mut wire, server) = pair("TLS_AES_128_GCM_SHA256", Protocol::Http1, |stream| {
            stream.write_all(b"x").unwrap();
        });
        shake_hands(&mut wire);
        let mut buffer = vec![0; 2 * HEADROOM];
        let mut end = None;
        while end.is_none() {
            end = wire.read(&mut buffer).unwrap().end;
        }
        assert_ne!(end, Some(crate::wire::CLOSED));
        server.join().unwrap();
    }

    #[test]
    fn a_server_without_http2_is_refused() {
        let (mut wire, server) = pair("TLS_AES_128_GCM_SHA256", Protocol::Http2, |_| ());
        let mut buffer = vec![0; 2 * HEADROOM];
        let error = loop {
            if let Err(error) = wire.read(&mut buffer) {
                break error;
            }
        };
        assert!(error.to_string().contains("does not offer HTTP/2"), "{error}");
        server.join().unwrap();
    }

    /// A session that opens records sealed by another.
    fn mirror(suite: Suite) -> (Session, Session) {
        let secrets = [vec![7; suite.secret_bytes()], vec![9; suite.secret_bytes()]];
        let session = |server: &[u8], client: &[u8]| Session::new(suite, server, client).unwrap();
        (session(&secrets[0], &secrets[1]), session(&secrets[1], &secrets[0]))
    }

    #[test]
    fn a_record_that_was_changed_repeated_or_left_out_is_noticed() {
        let (mut sender, _) = mirror(Suite::Aes128Gcm);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        sender.seal(b"first", &mut first).unwrap();
        sender.seal(b"second", &mut second).unwrap();
        let opened = |records: &[&[u8]]| {
            let mut bytes = records.concat();
            let opened = mirror(Suite::Aes128Gcm).1.open(&mut bytes)?;
            Ok::<_, io::Error>(bytes[..opened.length].to_vec())
        };
        assert_eq!(opened(&[&first, &second]).unwrap(), b"firstsecond");
        assert!(opened(&[&first, &first]).is_err());
        assert!(opened(&[&second]).is_err());
        for at in 0..first.len() {
            let mut changed = first.clone();
            changed[at] ^= 1;
            // A longer record only waits for its end.
            assert!(opened(&[&changed]).is_err() || at == 3 || at == 4, "byte {at}");
        }
    }

    #[test]
    fn what_no_server_sends_behind_the_handshake_is_refused() {
        let records: [(u8, &[u8]); 6] = [
            (HANDSHAKE, &[2, 0, 0, 0]),
            (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2]),
            (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0, NEW_SESSION_TICKET, 0, 0, 0]),
            (HANDSHAKE, &[NEW_SESSION_TICKET, 0, 0, 9, 0]),
            (ALERT, &[2, 80]),
            (20, &[1]),
        ];
        for (kind, content) in records {
            let (mut sender, mut receiver) = mirror(Suite::ChaCha20Poly1305);
            let mut bytes = Vec::new();
            sender.seal_record(kind, content, &mut bytes).unwrap();
            assert!(receiver.open(&mut bytes).is_err(), "{kind} {content:?}");
        }
    }
}
