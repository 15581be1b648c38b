//! The nginx module: its module table and the start and end of its processes.
//!
//! # Layout
//!
//! * [`config`]: directives, inheritance, checks, the shared zone across reloads.
//! * [`http`]: request handlers: publisher, subscriber, statistics.
//! * [`delivery`]: this worker's subscribers: registration, delivery, end.
//! * [`token`]: access tokens: key files, verified tokens.
//! * [`ffi`]: the boundary to C: panic guard, pools, handles.
//! * [`note`]: version and signature, to be read from the file.
//!
//! Data flows one way: request → `http` → store (shared memory) → `delivery` → connection.

mod config;
mod delivery;
mod ffi;
mod http;
mod note;
mod token;

use ngx::ffi::*;
use ngx::ngx_log_error;

use crate::ffi::panic_guard;

// What nginx looks for in a shared object. nginx's own build, see the file config, makes a table by itself.
#[cfg(feature = "export-modules")]
ngx::ngx_modules!(ngx_http_push_stream_module);

#[used]
#[allow(non_upper_case_globals)]
#[cfg_attr(not(feature = "export-modules"), unsafe(no_mangle))]
pub static mut ngx_http_push_stream_module: ngx_module_t = ngx_module_t {
    ctx: &raw const config::HTTP_MODULE as *mut std::ffi::c_void,
    commands: (&raw mut config::COMMANDS).cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_module: Some(init_module),
    init_process: Some(init_process),
    exit_process: Some(exit_process),
    exit_master: Some(exit_master),
    ..ngx_module_t::default()
};

/// Runs in the master, or the only process, once per configuration about to be used; also under `nginx -t`.
unsafe extern "C" fn init_module(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    panic_guard::guard(
        "init_module",
        || NGX_ERROR as ngx_int_t,
        || {
            // A linker that takes only what is referred to from an archive takes the note, too.
            std::hint::black_box(&note::NOTE);
            // SAFETY: nginx passes a cycle whose configuration was read and whose zones are mapped; it has a log.
            let (main, log) = unsafe { (config::of_cycle(cycle), (*cycle).log) };
            let Some(main) = main.filter(|main| main.used) else {
                ngx_log_error!(
                    NGX_LOG_NOTICE,
                    log,
                    "ngx_http_push_stream_module will not be used with this configuration."
                );
                return NGX_OK as ngx_int_t;
            };
            // SAFETY: constant once the command line was read.
            if unsafe { ngx_test_config } != 0 {
                return NGX_OK as ngx_int_t;
            }
            let (tickets, tokens) = (main.tokens.tickets.get(), main.tokens.are_used());
            if tickets && !token::tickets::prepare() || tokens && !token::subjects::prepare() {
                // SAFETY: a cycle has a log.
                let log = unsafe { (*cycle).log };
                ngx_log_error!(
                    NGX_LOG_EMERG,
                    log,
                    "push stream: no memory or random numbers for access tokens"
                );
                return NGX_ERROR as ngx_int_t;
            }
            match main.prepare_wake_fds().and_then(|()| delivery::prepare_handover(main)) {
                Ok(()) => {
                    delivery::reconfigure(main);
                    NGX_OK as ngx_int_t
                }
                Err(error) => {
                    ngx_log_error!(NGX_LOG_EMERG, log, "push stream: eventfd() failed: {error}");
                    NGX_ERROR as ngx_int_t
                }
            }
        },
    )
}

/// Runs in every child: workers start the delivery; helper processes such as the cache manager do not.
unsafe extern "C" fn init_process(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    panic_guard::guard(
        "init_process",
        // On an error nginx would end the process and never start another. Without the delivery only this module's
        // locations answer 503.
        || NGX_OK as ngx_int_t,
        || {
            // SAFETY: set before the process started its work.
            let serves =
                unsafe { ngx_process as u32 == NGX_PROCESS_WORKER || ngx_process as u32 == NGX_PROCESS_SINGLE };
            // SAFETY: nginx passes the cycle that this process serves.
            if serves && let Some(main) = (unsafe { config::of_cycle(cycle) }).filter(|main| main.used) {
                delivery::start(cycle, main);
            }
            NGX_OK as ngx_int_t
        },
    )
}

unsafe extern "C" fn exit_process(_cycle: *mut ngx_cycle_t) {
    panic_guard::event("exit_process", || {
        delivery::stop();
        config::forget_wake_fds();
    });
}

unsafe extern "C" fn exit_master(_cycle: *mut ngx_cycle_t) {
    panic_guard::event("exit_master", config::forget_wake_fds);
}
