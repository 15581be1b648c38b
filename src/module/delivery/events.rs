//! Event handlers called by nginx: the eventfd that other workers write to, posted work, and timers.

use std::cell::{Cell, UnsafeCell};
use std::ffi::c_void;
use std::ptr;
use std::time::Instant;

use ngx::ffi::*;
use ngx::ngx_log_error;
use push_stream_core::store::{Counter, Now, Tick};

use super::{Delivery, PROCESS, detach, perform, recovery, shutdown};
use crate::ffi::panic_guard;

/// Interval of housekeeping, and of a check of the inbox in case a publisher died before it could wake this worker.
const TICK_MS: u64 = 1000;

/// Delay of the next slice of housekeeping, if one was not enough.
const SOON_MS: u64 = 10;

/// Subscribers that must have ended before a worker gives memory back to the system, and the minimum interval.
const TRIM_AFTER: usize = 256;
const TRIM_EVERY_MS: u64 = 10_000;

/// The event structures. nginx links them into its own lists, so they stay where they are until the process ends.
pub struct Events {
    work: UnsafeCell<ngx_event_t>,
    tick: UnsafeCell<ngx_event_t>,
    timer_wheel: UnsafeCell<ngx_event_t>,
    walk: UnsafeCell<ngx_event_t>,
    leave: UnsafeCell<ngx_event_t>,
    /// Its eventfd could not be registered.
    deaf: Cell<bool>,
    log: *mut ngx_log_t,
}

impl Events {
    /// Makes the events of this process; none is armed yet.
    pub fn new(log: *mut ngx_log_t) -> &'static Events {
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
            work: event(on_work, true),
            tick: event(on_tick, true),
            timer_wheel: event(on_timer_wheel, true),
            walk: event(on_walk, true),
            // The only timer that keeps a leaving worker alive.
            leave: event(on_shutdown, false),
            deaf: Cell::new(false),
            log,
        }))
    }

    pub fn start(&self) {
        add_timer(&self.tick, TICK_MS);
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
            (*read).handler = Some(on_wake);
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

/// Handler: another process published to a channel of this worker, or nginx tells the worker to exit.
unsafe extern "C" fn on_wake(event: *mut ngx_event_t) {
    panic_guard::event("wake-up", || {
        // SAFETY: nginx passes the read event of the connection that `listen` made.
        let leave = unsafe {
            let connection = (*event).data.cast::<ngx_connection_t>();
            empty((*connection).fd);
            (*event).set_ready(0);
            ngx_handle_read_event(event, 0);
            (*connection).close() != 0
        };
        PROCESS.with(Delivery::wake);
        if leave {
            shutdown::begin();
        }
    });
}

/// Reads the eventfd, always: a level-triggered event method would report it again and again.
fn empty(fd: i32) {
    let mut count = 0u64;
    // SAFETY: an eventfd gives eight bytes or fails.
    unsafe { libc::read(fd, ptr::from_mut(&mut count).cast::<c_void>(), size_of::<u64>()) };
}

unsafe extern "C" fn on_work(_event: *mut ngx_event_t) {
    panic_guard::guard("delivery", recovery::start_over, || {
        let started = Instant::now();
        let settling = PROCESS.with(|delivery| {
            delivery.disconnect_log.flush(Now::read().monotonic_ms);
            std::mem::take(&mut delivery.settling)
        });
        settling.unwrap_or_default().into_iter().for_each(detach::detach);
        let mut actions = Vec::new();
        let more = PROCESS.with(|delivery| {
            let more = delivery.work(&mut actions);
            delivery.conclude_giving(&mut actions);
            more
        });
        let more = more.unwrap_or(false);
        perform(actions);
        PROCESS.with(|delivery| {
            delivery.pace(started, more);
            if more {
                delivery.events.post_more_work();
            }
        });
    });
}

unsafe extern "C" fn on_timer_wheel(_event: *mut ngx_event_t) {
    panic_guard::guard("timer wheel", recovery::start_over, || {
        let mut actions = Vec::new();
        PROCESS.with(|delivery| delivery.advance_timer_wheel(&mut actions));
        perform(actions);
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
        PROCESS.with(|delivery| add_timer(&delivery.events.tick, TICK_MS));
    };
    panic_guard::guard("tick", tick_again, || {
        PROCESS.with(Delivery::tick);
    });
}

impl Delivery {
    fn tick(&mut self) {
        let now = Now::read();
        let mut next = TICK_MS;
        if self.worker.is_none() {
            self.claim();
        } else if self.events.deaf.get() {
            self.listen();
        }
        if let Some(worker) = &mut self.worker
            && worker.tick(now) == Tick::More
        {
            next = SOON_MS;
        }
        if let Some(worker) = self.worker.as_ref().filter(|worker| worker.is_overlooked()) {
            worker.count(Counter::WakeupTimer, 1);
        }
        self.count();
        self.report(now);
        self.start_top_channels_walk(now);
        self.look_after_taking(now.monotonic_ms);
        self.forget_buffers();
        self.give_memory_back(now.monotonic_ms);
        self.wake();
        add_timer(&self.events.tick, next);
    }

    /// Records the time without a poll for events: from one slice to the next, if nginx did not sleep in between.
    fn pace(&mut self, started: Instant, more: bool) {
        let before = std::mem::replace(&mut self.slice_before, more.then_some(started));
        let stretch = before.map_or(started.elapsed(), |before| started.duration_since(before));
        if let Some(worker) = &self.worker {
            worker.note_stretch(stretch.max(started.elapsed()));
        }
    }

    /// Returns freed memory, which glibc keeps, to the system: after many subscribers have ended and the storm is over.
    fn give_memory_back(&mut self, now_ms: u64) {
        let ended = self.counters.ended;
        let calm = std::mem::replace(&mut self.counters.ended_before, ended) == ended;
        // The call walks all memory: the more there is, the more must be gained.
        let worth = TRIM_AFTER.max(self.registry.slab.len() / 8);
        if calm && ended >= worth && now_ms >= self.counters.trimmed_ms + TRIM_EVERY_MS {
            self.counters.ended = 0;
            self.counters.ended_before = 0;
            self.counters.trimmed_ms = now_ms;
            self.registry.channels.shrink_to_fit();
            // SAFETY: may be called at any time.
            unsafe { libc::malloc_trim(0) };
        }
    }
}
