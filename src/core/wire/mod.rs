//! Formats: bytes in, bytes out.

pub mod batch;
pub mod channel_path;
pub mod coding;
pub mod console;
pub mod control;
pub mod dismissal;
pub mod escape;
pub mod event_id;
pub mod eventsource;
pub mod exposition;
pub mod gap;
pub mod handover;
pub mod http_date;
pub mod merge;
pub mod operators;
pub mod padding;
pub mod percent;
pub mod position;
pub mod query;
pub mod statistics;
pub mod template;
pub mod tls;
pub mod websocket;

/// Appends a number in decimal. Statistics of a million channels consist mostly of numbers.
fn push_number(number: u64, out: &mut Vec<u8>) {
    const LONGEST: usize = 20;
    let mut digits = [0; LONGEST];
    let mut start = LONGEST;
    let mut rest = number;
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn push_signed(number: i64, out: &mut Vec<u8>) {
    if number < 0 {
        out.push(b'-');
    }
    push_number(number.unsigned_abs(), out);
}
