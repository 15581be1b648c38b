//! Requests of this process that wait for answers of other nginx workers: commands in the zone, from the side of who asks.
//! [`super::mail`] sends them and takes the answers.

use ngx::ffi::ngx_int_t;
use rustc_hash::FxHashMap;

use push_stream_core::store::{self, Unposted};

use crate::ffi::parked;
use crate::ffi::request::Request;

/// What came of asking.
#[derive(Default)]
pub struct Answers {
    pub answers: Vec<store::Answer>,
    /// Answers that did not come in time.
    pub missing: usize,
    /// Processes that the command could not be sent to, though they live.
    pub refused: usize,
}

/// Answers the request with what came; returns the code to finalize it with.
pub type Then = Box<dyn FnOnce(Request<'_>, Answers) -> ngx_int_t>;

/// Why nobody was asked.
#[derive(Clone, Copy, Debug)]
pub enum Unasked {
    /// This worker has no slot in the zone.
    Unavailable,
    NoMemory,
    Unposted(Unposted),
}

/// Requests of this process that wait for answers.
#[derive(Default)]
pub struct Asking {
    /// Number of the last one.
    pub last: u64,
    pub waiting: FxHashMap<u64, Waiting>,
}

pub struct Waiting {
    pub then: Then,
    pub answers: Answers,
}

/// A request that has all its answers.
pub struct Answered {
    pub number: u64,
    pub then: Then,
    pub answers: Answers,
}

impl Answered {
    pub fn resume(self) {
        parked::resume(self.number, |r| (self.then)(r, self.answers));
    }
}
