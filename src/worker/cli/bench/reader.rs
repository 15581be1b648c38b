//! An EventSource client that measures each post's latency.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::post;

/// Text before the timestamp in a published post.
const STAMP: &str = "\"created\":\"";

/// Microseconds between timestamp and arrival, of all posts so far.
pub struct Reader {
    count: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Vec<u32>>,
    stream: TcpStream,
}

impl Reader {
    /// Subscribes to all forums. Timestamps are microseconds since `start`.
    pub fn start(port: u16, start: Instant) -> Result<Self, String> {
        let describe_error = |error: std::io::Error| format!("the reader: {error}");
        let channels: Vec<String> = (0..post::FORUMS).map(|n| format!("forum.f{n}")).collect();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(describe_error)?;
        let request = format!("GET /sub/{} HTTP/1.1\r\nHost: bench\r\n\r\n", channels.join("/"));
        stream.write_all(request.as_bytes()).map_err(describe_error)?;
        let mut lines = BufReader::with_capacity(1 << 20, stream.try_clone().map_err(describe_error)?);
        let mut status = String::new();
        lines.read_line(&mut status).map_err(describe_error)?;
        if !status.contains(" 200 ") {
            return Err(format!("the reader is refused: {status}"));
        }
        let count = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&count);
        let thread = std::thread::spawn(move || {
            let mut lateness = Vec::new();
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                if let Some(stamp) = stamp(&line) {
                    let now = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                    lateness.push(u32::try_from(now.saturating_sub(stamp)).unwrap_or(u32::MAX));
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                line.clear();
            }
            lateness
        });
        Ok(Self { count, thread, stream })
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends the client and returns the latencies, sorted.
    pub fn finish(self) -> Vec<u32> {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.thread.join().unwrap_or_default()
    }
}

fn stamp(line: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(line, STAMP.as_bytes())? + STAMP.len();
    let digits = line[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&line[at..at + digits]).ok()?.parse().ok()
}

/// The value that `per_mille` of a thousand do not exceed.
pub fn quantile(sorted: &[u32], per_mille: usize) -> u32 {
    let at = (sorted.len() * per_mille).div_ceil(1000).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_in_an_event() {
        assert_eq!(stamp(b"data: {\"id\":\"1\",\"created\":\"123456\"}\r\n"), Some(123_456));
        assert_eq!(stamp(b": \r\n"), None);
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let sorted: Vec<u32> = (1..=1000).collect();
        assert_eq!(
            (quantile(&sorted, 500), quantile(&sorted, 990), quantile(&sorted, 1000)),
            (500, 990, 1000)
        );
        assert_eq!((quantile(&[7], 500), quantile(&[], 990)), (7, 0));
    }
}
