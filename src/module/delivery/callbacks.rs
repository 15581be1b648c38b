//! What nginx's event loop calls: the eventfd that other workers write to, posted work, and timers.

use std::ffi::c_void;
use std::ptr;

use ngx::ffi::*;

use super::events::Callbacks;
use super::hand_out::Slice;
use super::housekeeping::TICK_MS;
use super::perform::perform;
use super::state::{Delivery, PROCESS};
use super::{detach, recovery, shutdown};
use crate::ffi::connection::Event;
use crate::ffi::panic_guard;

pub const CALLBACKS: Callbacks = Callbacks {
    wake: on_wake,
    work: on_work,
    tick: on_tick,
    timer_wheel: on_timer_wheel,
    walk: on_walk,
    shutdown: on_shutdown,
};

/// Handler: another process published to a channel of this worker, or nginx tells the worker to exit.
unsafe extern "C" fn on_wake(event: *mut ngx_event_t) {
    panic_guard::event("wake-up", || {
        // SAFETY: nginx passes the read event of the connection that `listen` made.
        let (event, connection) = unsafe {
            let event = Event::new(event);
            (event, event.connection())
        };
        // epoll reports each write once, whether the earlier ones were read or not.
        // SAFETY: nginx sets it before it forks.
        if unsafe { ngx_event_flags } & NGX_USE_EPOLL_EVENT as ngx_uint_t == 0 {
            empty(connection.fd());
        }
        event.set_ready(false);
        event.watch_read();
        let leave = connection.is_to_close();
        PROCESS.with(Delivery::wake);
        if leave {
            shutdown::begin();
        }
    });
}

/// Reads the eventfd: a level-triggered event method would report it again and again.
fn empty(fd: i32) {
    let mut count = 0u64;
    // SAFETY: an eventfd gives eight bytes or fails.
    unsafe { libc::read(fd, ptr::from_mut(&mut count).cast::<c_void>(), size_of::<u64>()) };
}

unsafe extern "C" fn on_work(_event: *mut ngx_event_t) {
    panic_guard::guard("delivery", recovery::start_over, || {
        let slice = Slice::begin();
        let settling = PROCESS.with(|delivery| {
            delivery.disconnect_log.flush(slice.now.monotonic_ms);
            std::mem::take(&mut delivery.settling)
        });
        settling.unwrap_or_default().into_iter().for_each(detach::detach);
        let mut actions = Vec::new();
        let more = PROCESS.with(|delivery| {
            let more = delivery.work(&slice, &mut actions);
            delivery.conclude_giving(&mut actions);
            more
        });
        let more = more.unwrap_or(false);
        perform(actions);
        PROCESS.with(|delivery| {
            delivery.pace(slice.started, more);
            if more {
                delivery.events.post_more_work();
            }
        });
    });
}

unsafe extern "C" fn on_timer_wheel(_event: *mut ngx_event_t) {
    panic_guard::guard("timer wheel", recovery::start_over, || {
        // Ends take time when they are performed: that of many must not add up to one long turn.
        let slice = Slice::begin();
        loop {
            let mut actions = Vec::new();
            let more = PROCESS.with(|delivery| delivery.advance_timer_wheel(&mut actions));
            let more = more.unwrap_or(false);
            perform(actions);
            if more && !slice.is_over() {
                continue;
            }
            PROCESS.with(|delivery| {
                delivery.note_turn(slice.started);
                if more {
                    delivery.events.advance_timer_wheel_next();
                }
            });
            break;
        }
    });
}

unsafe extern "C" fn on_walk(_event: *mut ngx_event_t) {
    panic_guard::event("walk over channels", || {
        PROCESS.with(Delivery::walk);
    });
}

unsafe extern "C" fn on_shutdown(_event: *mut ngx_event_t) {
    panic_guard::guard("leaving", recovery::start_over, shutdown::go_on);
}

unsafe extern "C" fn on_tick(_event: *mut ngx_event_t) {
    let tick_again = || {
        PROCESS.with(|delivery| delivery.events.tick_in(TICK_MS));
    };
    panic_guard::guard("tick", tick_again, || {
        PROCESS.with(Delivery::tick);
    });
}
