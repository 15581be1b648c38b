//! The disconnect log (`push_stream_log_disconnect`): one line for each stream that ends, buffered, so that a storm of
//! disconnects is one write.

use std::io;

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::Mode;
use push_stream_core::wire::handover;

use super::ending::Reason;

/// Bytes of lines buffered for one file: more are written before the event is over.
const GATHERED: usize = 64 * 1024;

/// The data of a stream for its line. Only kept where the directive is on.
pub struct DisconnectRecord {
    /// Lives as long as the configuration that the stream's location is in.
    file: *mut ngx_open_file_t,
    /// Client address, mode and channels, as in the line.
    who: Box<[u8]>,
    began_ms: u64,
    messages: u64,
    bytes: u64,
}

impl DisconnectRecord {
    pub fn new(file: *mut ngx_open_file_t, client: &[u8], mode: Mode, ids: &[&[u8]], now_ms: u64) -> DisconnectRecord {
        let mut who = b"client=".to_vec();
        push_escaped(client, &mut who);
        who.extend_from_slice(b" mode=");
        who.extend_from_slice(mode.name().as_bytes());
        who.extend_from_slice(b" channels=");
        for (index, id) in ids.iter().enumerate() {
            if index > 0 {
                who.push(b'/');
            }
            push_escaped(id, &mut who);
        }
        DisconnectRecord {
            file,
            who: who.into(),
            began_ms: now_ms,
            messages: 0,
            bytes: 0,
        }
    }

    /// The record as another worker kept it up to now.
    pub fn from_wire(file: *mut ngx_open_file_t, disconnect_record: &handover::DisconnectRecord) -> DisconnectRecord {
        DisconnectRecord {
            file,
            who: disconnect_record.who.clone().into(),
            began_ms: disconnect_record.began_ms,
            messages: disconnect_record.messages,
            bytes: disconnect_record.bytes,
        }
    }

    /// The record for another worker.
    pub fn to_wire(&self) -> handover::DisconnectRecord {
        handover::DisconnectRecord {
            who: self.who.to_vec(),
            began_ms: self.began_ms,
            messages: self.messages,
            bytes: self.bytes,
        }
    }

    /// Counts messages handed to the stream.
    pub fn add_messages(&mut self, count: usize) {
        self.messages += count as u64;
    }

    /// Subtracts messages that were dropped before they were sent.
    pub fn drop_messages(&mut self, count: usize) {
        self.messages = self.messages.saturating_sub(count as u64);
    }

    /// Counts sent bytes.
    pub fn add_bytes(&mut self, count: usize) {
        self.bytes += count as u64;
    }
}

/// Appends a part of a line, escaped: nothing in it may end the line or look like the next field.
fn push_escaped(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        if byte.is_ascii_graphic() && byte != b'\\' {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("\\x{byte:02X}").as_bytes());
        }
    }
}

/// Buffered lines, by file.
#[derive(Default)]
pub struct DisconnectLog {
    files: Vec<(*mut ngx_open_file_t, Vec<u8>)>,
    /// When a write error was last logged.
    complained_ms: u64,
}

impl DisconnectLog {
    /// Adds the line of a stream that has ended.
    pub fn add(&mut self, disconnect_record: &DisconnectRecord, reason: Reason, now_ms: u64) {
        let index = self.files.iter().position(|(file, _)| *file == disconnect_record.file);
        let index = index.unwrap_or_else(|| {
            self.files.push((disconnect_record.file, Vec::new()));
            self.files.len() - 1
        });
        let lines = &mut self.files[index].1;
        // SAFETY: nginx keeps the time as text; this thread alone points it to another one.
        let time = unsafe { ngx_cached_http_log_iso8601 };
        lines.extend_from_slice(time.as_bytes());
        lines.push(b' ');
        lines.extend_from_slice(&disconnect_record.who);
        let duration_ms = now_ms - disconnect_record.began_ms;
        let figures = format!(
            " seconds={}.{:03} messages={} bytes={} reason={}\n",
            duration_ms / 1000,
            duration_ms % 1000,
            disconnect_record.messages,
            disconnect_record.bytes,
            reason.name()
        );
        lines.extend_from_slice(figures.as_bytes());
        if lines.len() > GATHERED {
            self.flush(now_ms);
        }
    }

    /// Writes all lines.
    pub fn flush(&mut self, now_ms: u64) {
        for (file, lines) in std::mem::take(&mut self.files) {
            // SAFETY: the file belongs to a configuration that a stream referred to until now; nginx opens it again when it
            // gets USR1, and then changes the descriptor.
            let fd = unsafe { (*file).fd };
            if let Err(error) = write_all(fd, &lines)
                && now_ms >= self.complained_ms + 60_000
            {
                self.complained_ms = now_ms.max(1);
                let log = ngx::log::ngx_cycle_log().as_ptr();
                ngx_log_error!(
                    NGX_LOG_ALERT,
                    log,
                    "push stream: writing the log of disconnects failed: {error}"
                );
            }
        }
    }
}

/// Appends to a file with one write, so that lines of several workers do not mix.
fn write_all(fd: i32, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the bytes are valid; the descriptor is the file's.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
