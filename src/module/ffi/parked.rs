//! Requests that wait for something other than their client, such as another process.
//!
//! Each is known here by a number, until it is answered or gone: so nobody else has to know whether it is still there.

use std::ffi::c_void;
use std::ptr;

use ngx::ffi::*;
use rustc_hash::FxHashMap;

use super::cell::ProcessCell;
use super::connection::Connection;
use super::request::Request;
use super::{lookup, panic_guard};

/// What a request that waits is told.
#[derive(Clone, Copy)]
pub struct Fate {
    /// Its time is over. It waits until it is [resumed](resume), at once.
    pub late: fn(u64),
    /// It was ended by its client, or with its connection.
    pub gone: fn(u64),
}

struct Parked {
    request: *mut ngx_http_request_t,
    fate: Fate,
}

static PARKED: ProcessCell<FxHashMap<u64, Parked>> = ProcessCell::empty();

/// Keeps a request, whose body nginx has read, until it is [resumed](resume) by this number, which no other has. Returns
/// the handler's return value; None if there is no memory.
pub fn park(r: Request<'_>, number: u64, timeout_ms: u64, fate: Fate) -> Option<ngx_int_t> {
    let request = r.raw();
    // SAFETY: the request is valid; the cleanup takes it off the table before it is freed. Its context entry of this
    // module is ours.
    unsafe {
        let cleanup = ngx_http_cleanup_add(request, 0).as_mut()?;
        cleanup.handler = Some(on_gone);
        cleanup.data = ptr::without_provenance_mut(number as usize);
        *lookup::context(request) = cleanup.data;
        (*request).read_event_handler = Some(ngx_http_test_reading);
        (*request).write_event_handler = Some(on_write);
        (*(*request).main).set_count((*(*request).main).count() + 1);
        let connection = Connection::new((*request).connection);
        connection.write().add_timer(timeout_ms);
        if connection.read().is_ready() {
            connection.read().post();
        } else {
            connection.read().watch_read();
        }
    }
    let parked = Parked { request, fate };
    if PARKED.with(|table| table.is_empty()).is_none() {
        PARKED.set(FxHashMap::default());
    }
    PARKED.with(|table| table.insert(number, parked));
    Some(NGX_DONE as ngx_int_t)
}

/// Answers a request that waits: `answer` returns the code to finalize it with. False if it is gone.
pub fn resume(number: u64, answer: impl FnOnce(Request<'_>) -> ngx_int_t) -> bool {
    let Some(parked) = PARKED.with(|table| table.remove(&number)).flatten() else {
        return false;
    };
    let request = parked.request;
    // SAFETY: it was in the table, so its cleanup has not run and it is alive. Nothing is done with it afterwards;
    // connections outlive their requests, and nginx marks those that do not go on.
    unsafe {
        let raw = (*request).connection;
        let connection = Connection::new(raw);
        connection.write().forget_timeout();
        *lookup::context(request) = ptr::null_mut();
        let code = panic_guard::request("answer", || answer(Request::new(request)));
        ngx_http_finalize_request(request, code);
        ngx_http_run_posted_requests(raw);
    }
    true
}

/// Write handler: the request's time may be over.
unsafe extern "C" fn on_write(r: *mut ngx_http_request_t) {
    panic_guard::event("waiting request", || {
        // SAFETY: nginx passes a valid request that `park` gave this handler and its context.
        let (number, late) = unsafe {
            let number = (*lookup::context(r)).addr() as u64;
            (number, Connection::new((*r).connection).write().is_timed_out())
        };
        let fate = PARKED
            .with(|table| table.get(&number).map(|parked| parked.fate))
            .flatten();
        if let Some(fate) = fate.filter(|_| late) {
            (fate.late)(number);
        }
    });
}

/// Cleanup: the request ends.
unsafe extern "C" fn on_gone(data: *mut c_void) {
    panic_guard::event("end of a waiting request", || {
        let number = data.addr() as u64;
        if let Some(parked) = PARKED.with(|table| table.remove(&number)).flatten() {
            (parked.fate.gone)(number);
        }
    });
}
