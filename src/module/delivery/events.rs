//! This module's events in nginx's loop: posted work, timers, and the eventfd that other workers write to.

use std::cell::{Cell, UnsafeCell};

use ngx::ffi::*;
use ngx::ngx_log_error;

pub type Callback = unsafe extern "C" fn(*mut ngx_event_t);

/// What nginx calls for each of the events.
pub struct Callbacks {
    pub wake: Callback,
    pub work: Callback,
    pub tick: Callback,
    pub timer_wheel: Callback,
    pub walk: Callback,
    pub shutdown: Callback,
}

/// The event structures. nginx links them into its own lists, so they stay where they are until the process ends.
pub struct Events {
    work: UnsafeCell<ngx_event_t>,
    tick: UnsafeCell<ngx_event_t>,
    timer_wheel: UnsafeCell<ngx_event_t>,
    walk: UnsafeCell<ngx_event_t>,
    leave: UnsafeCell<ngx_event_t>,
    wake: Callback,
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

    pub fn tick_in(&self, delay_ms: u64) {
        add_timer(&self.tick, delay_ms);
    }

    /// Posts work, to run as soon as the current events are handled.
    pub fn post_work(&self) {
        // SAFETY: the event and nginx's queue are valid; this is nginx's thread.
        unsafe { ngx_post_event(self.work.get(), &raw mut ngx_posted_events) };
    }

    /// Posts more work, to run after other events had their turn.
    pub fn post_more_work(&self) {
        // SAFETY: as above.
        unsafe { ngx_post_event(self.work.get(), &raw mut ngx_posted_next_events) };
    }

    pub fn advance_timer_wheel_in(&self, delay_ms: u64) {
        add_timer(&self.timer_wheel, delay_ms);
    }

    pub fn walk_in(&self, delay_ms: u64) {
        add_timer(&self.walk, delay_ms);
    }

    pub fn shutdown_in(&self, delay_ms: u64) {
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
        // SAFETY: the descriptor is open, inherited from the master; the connection is ours until the process ends.
        unsafe {
            let Some(connection) = ngx_get_connection(fd, self.log).as_mut() else {
                return false;
            };
            let read = connection.read;
            (*read).handler = Some(self.wake);
            (*read).log = self.log;
            // Not a client's connection: no alert at exit that it is still open.
            (*read).set_channel(1);
            (*connection.write).set_channel(1);
            (*connection.write).log = self.log;
            connection.log = self.log;
            // Makes nginx call the handler when the worker is told to exit.
            connection.set_idle(1);
            if ngx_handle_read_event(read, 0) != NGX_OK as ngx_int_t {
                ngx_free_connection(connection);
                return false;
            }
        }
        true
    }
}

/// Arms a timer, or moves it to an earlier time.
fn add_timer(event: &UnsafeCell<ngx_event_t>, delay_ms: u64) {
    // SAFETY: the event lives for ever; this is nginx's thread.
    unsafe {
        let event = event.get();
        let due = ngx_current_msec.wrapping_add(delay_ms as ngx_msec_t);
        if (*event).timer_set() != 0 {
            if (*event).timer.key <= due {
                return;
            }
            // nginx keeps an armed timer that is less than 300 ms too late.
            ngx_del_timer(event);
        }
        ngx_add_timer(event, delay_ms as ngx_msec_t);
    }
}
