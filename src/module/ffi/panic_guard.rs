//! The panic guard: every function that C calls runs its body through here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ngx::ffi::{NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_LOG_ALERT, ngx_int_t};
use ngx::ngx_log_error;

use super::fault;

/// Runs `body`; a panic is logged and replaced by `fallback`. The process lives.
///
/// If the panic left the shared zone half-written, the mutation has been undone before the panic arrives here.
pub fn guard<R>(entry: &str, fallback: impl FnOnce() -> R, body: impl FnOnce() -> R) -> R {
    let body = || {
        fault::point(entry);
        body()
    };
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        report(entry, panic);
        fallback()
    })
}

/// Runs `body` again if it panics: for mutations of the store that must take place, and that the panic has undone.
pub fn twice(entry: &str, mut body: impl FnMut()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(&mut body)) {
        report(entry, panic);
        body();
    }
}

/// The guard for request handlers: a panic answers 500.
pub fn request(entry: &str, body: impl FnOnce() -> ngx_int_t) -> ngx_int_t {
    guard(entry, || NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t, body)
}

/// The guard for handlers without a return value: events, timers, cleanups.
pub fn event(entry: &str, body: impl FnOnce()) {
    guard(entry, || (), body)
}

fn report(entry: &str, panic: Box<dyn Any + Send>) {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown");
    let log = ngx::log::ngx_cycle_log().as_ptr();
    ngx_log_error!(NGX_LOG_ALERT, log, "push stream: panic in {entry}: {text}");
    // Dropping a foreign payload could panic again, outside of the guard.
    std::mem::forget(panic);
}
