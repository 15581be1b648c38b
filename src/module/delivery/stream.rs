//! Streams over HTTP/2 whose request was given back: a stub is in its place ([`crate::ffi::stream`]).
//!
//! What one slice of work has for several streams of a connection is gathered, and goes out in one send.

use ngx::ffi::*;
use ngx::ngx_log_error;

use super::action::{Action, Delivered};
use super::ending::Ending;
use super::flight::Flight;
use super::frames::Piece;
use super::output::Step;
use super::state::Delivery;
use super::subscriber::{Subscriber, SubscriberId};
use crate::ffi::optional::Stat;
use crate::ffi::stream::Stream;

/// Streams whose frames are gathered before they are sent.
const GATHERED: usize = 64;

/// Closes the stream of a subscriber that was just removed.
pub fn close(mut subscriber: Subscriber, ending: Ending) {
    Stat::Writing.add(-1);
    let connection = subscriber.connection();
    match ending {
        Ending::TimedOut => {
            ngx_log_error!(NGX_LOG_INFO, connection.log(), "push stream: client timed out");
            connection.set_timed_out();
        }
        Ending::TooSlow => {
            ngx_log_error!(NGX_LOG_INFO, connection.log(), "push stream: slow subscriber closed");
        }
        Ending::Regular | Ending::Failed | Ending::Gone => {}
    }
    let flight = subscriber.flight.take();
    // SAFETY: the subscriber is gone, and nothing is done with the stream after this.
    unsafe { subscriber.stream().close(ending == Ending::Regular, flight) };
}

impl Subscriber {
    fn stream(&self) -> Stream<'_> {
        // SAFETY: called for subscribers with a stub only, whose stream is open until `close`.
        unsafe { Stream::of(self.connection()) }
    }

    /// Delivers a live piece to a stream: sends it, or makes a frame that is gathered with those of its connection's other
    /// streams. None if it must be queued behind what is on its way.
    pub fn send_to_stream(&mut self, piece: &Piece) -> Option<Delivered> {
        if self.flight.is_some() || !self.send_queue.is_empty() {
            return None;
        }
        self.count(piece.len());
        let flight = self.flight.insert(Flight::of(piece.clone()));
        flight.rest = flight.chain();
        let gathers = self.stream().has_siblings();
        Some(if !self.pass_on(gathers) {
            Delivered::Cut(Ending::Failed)
        } else if gathers {
            Delivered::Gathered
        } else if self.land_stream() {
            Delivered::Sent
        } else {
            self.wait_writable();
            Delivered::Queued { dropped: 0 }
        })
    }

    /// Passes the rest of the flight to nginx; false if that failed.
    fn pass_on(&mut self, gathers: bool) -> bool {
        let Some(rest) = self.flight.as_ref().map(|flight| flight.rest) else {
            return true;
        };
        if rest.is_null() {
            return true;
        }
        // SAFETY: the flight stays until the stream is idle and there is no rest.
        let Ok(rest) = (unsafe { self.stream().send(rest, gathers) }) else {
            return false;
        };
        if let Some(flight) = &mut self.flight {
            flight.rest = rest;
        }
        true
    }

    /// Ends the flight if nginx has finished with it.
    fn land_stream(&mut self) -> bool {
        let landed = self.flight.as_ref().is_none_or(|flight| flight.rest.is_null()) && self.stream().is_idle();
        if landed {
            self.flight = None;
            // SAFETY: the stream is idle, and there is no rest.
            unsafe { self.stream().land() };
        }
        landed
    }

    /// The next step towards an empty send queue, as [`Subscriber::step`].
    pub fn step_stream(&mut self) -> Step {
        loop {
            if !self.pass_on(false) {
                return Step::Failed;
            }
            if !self.land_stream() {
                self.wait_writable();
                return Step::Blocked;
            }
            if self.send_queue.is_empty() {
                self.stop_waiting();
                return Step::Drained;
            }
            let flight = self.next_flight();
            flight.rest = flight.chain();
        }
    }
}

impl Delivery {
    /// Notes a stream with a frame that waits. Only so many do: what they need is still in the cache then.
    pub fn gather(&mut self, id: SubscriberId, actions: &mut Vec<Action>) {
        self.inbox.gathered.push(id);
        if self.inbox.gathered.len() == GATHERED {
            self.flush_streams(actions);
        }
    }

    /// Sends what this slice of work has gathered.
    pub fn flush_streams(&mut self, actions: &mut Vec<Action>) {
        let mut gathered = std::mem::take(&mut self.inbox.gathered);
        for id in gathered.drain(..) {
            let Some(subscriber) = self.registry.slab.get(id) else {
                continue;
            };
            // With the first of its streams the whole connection.
            subscriber.stream().flush();
            subscriber.stream().settle();
            if !subscriber.land_stream() {
                subscriber.wait_writable();
            } else if !subscriber.send_queue.is_empty() {
                actions.push(Action::Advance(id));
            }
        }
        self.inbox.gathered = gathered;
    }
}
