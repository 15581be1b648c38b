//! This module's events in nginx's loop: posted work, timers, and the eventfd that other workers write to.

use std::cell::{Cell, UnsafeCell};

use ngx::ffi::*;
use ngx::ngx_log_error;

use crate::ffi::connection::{Connection, Event, Handler};

/// What nginx calls for each of the events.
pub struct Callbacks {
    pub wake: Handler,
    pub work: Handler,
    pub tick: Handler,
    pub timer_wheel: Handler,
    pub walk: Handler,
    pub shutdown: Handler,
}

/// The event structures. nginx links them into its own lists, so they stay where they are until the process ends.
pub struct Events {
    work: UnsafeCell<ngx_event_t>,
    tick: UnsafeCell<ngx_event_t>,
    timer_wheel: UnsafeCell<ngx_event_t>,
    walk: UnsafeCell<ngx_event_t>,
    leave: UnsafeCell<ngx_event_t>,
    wake: Handler,
    /// Its eventfd could not be registered.
    pub deaf: Cell<bool>,
    log: *mut ngx_log_t,
}

impl Events {
    /// Makes the events of this process; none is armed yet.
    pub fn new(callbacks: Callbacks, log: *mut ngx_log_t) -> &'static Events {
        // nginx prints the descriptor of an event's connection in its debug log.
        // SAFETY: a connection of all zeroes is a valid one that is not open.
        let mut nobody: ngx_connection_t = unsafe { std::mem::zeroed() };
        nobody.fd = -1;
        let nobody: *mut ngx_connection_t = Box::leak(Box::new(nobody));
        let event = |handler, cancelable: bool| {
            // SAFETY: an event of all zeroes is a valid one that is not armed.
            let mut event: ngx_event_t = unsafe { std::mem::zeroed() };
            event.data = nobody.cast();
            event.handler = Some(handler);
            event.log = log;
            event.set_cancelable(cancelable as u32);
            UnsafeCell::new(event)
        };
        Box::leak(Box::new(Events {
            work: event(callbacks.work, true),
            tick: event(callbacks.tick, true),
            timer_wheel: event(callbacks.timer_wheel, true),
            walk: event(callbacks.walk, true),
            // The only timer that keeps a leaving worker alive.
            leave: event(callbacks.shutdown, false),
            wake: callbacks.wake,
            deaf: Cell::new(false),
            log,
        }))
    }

    pub fn tick_in(&'static self, delay_ms: u64) {
        add_timer(&self.tick, delay_ms);
    }

    /// Posts work, to run as soon as the current events are handled.
    pub fn post_work(&'static self) {
        handle(&self.work).post();
    }

    /// Posts more work, to run after other events had their turn.
    pub fn post_more_work(&'static self) {
        handle(&self.work).post_next();
    }

    pub fn advance_timer_wheel_in(&'static self, delay_ms: u64) {
        add_timer(&self.timer_wheel, delay_ms);
    }

    /// Advances the timer wheel again after other events had their turn.
    pub fn advance_timer_wheel_next(&'static self) {
        handle(&self.timer_wheel).post_next();
    }

    pub fn walk_in(&'static self, delay_ms: u64) {
        add_timer(&self.walk, delay_ms);
    }

    pub fn shutdown_in(&'static self, delay_ms: u64) {
        add_timer(&self.leave, delay_ms);
    }

    /// Registers this worker's eventfd. While that fails, the tick replaces it and tries again.
    pub fn listen(&self, fd: Option<i32>) {
        let listening = fd.is_some_and(|fd| self.open(fd));
        if !listening && !self.deaf.replace(true) {
            ngx_log_error!(
                NGX_LOG_WARN,
                self.log,
                "push stream: cannot listen to the eventfd, looking once a second instead"
            );
        } else if listening && self.deaf.replace(false) {
            ngx_log_error!(NGX_LOG_NOTICE, self.log, "push stream: listening to the eventfd again");
        }
    }

    fn open(&self, fd: i32) -> bool {
        let Some(connection) = Connection::open(fd, self.log) else {
            return false;
        };
        connection.read().set_handler(self.wake);
        connection.set_internal();
        // Makes nginx call the handler when the worker is told to exit.
        connection.set_idle();
        let watched = connection.read().watch_read();
        if !watched {
            // SAFETY: nothing else has it; the descriptor is the zone's.
            unsafe { connection.give_back() };
        }
        watched
    }
}

/// The event as a handle.
fn handle(event: &'static UnsafeCell<ngx_event_t>) -> Event<'static> {
    // SAFETY: the event lives for ever, and nothing refers to it but nginx's lists.
    unsafe { Event::new(event.get()) }
}

/// Arms a timer, or moves it to an earlier time.
fn add_timer(event: &'static UnsafeCell<ngx_event_t>, delay_ms: u64) {
    let event = handle(event);
    // SAFETY: nginx's clock, which only this thread moves.
    let due = unsafe { ngx_current_msec }.wrapping_add(delay_ms as ngx_msec_t);
    if event.is_due_before(due) {
        return;
    }
    // nginx keeps an armed timer that is less than 300 ms too late.
    event.drop_timer();
    event.add_timer(delay_ms);
}
