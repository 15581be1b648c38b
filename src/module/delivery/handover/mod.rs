//! Handover: a leaving worker gives its detached subscribers to an accepting one, so that no reader notices a reload.
//!
//! A detached subscriber over HTTP/1, plain or with TLS of this module, is a socket and some figures. All workers of all generations share one Unix
//! datagram socket, made by the master before it forks. A [leaving worker](giving) sends an invitation to it for each
//! worker that accepts: one end of a socket of their own. The worker that takes the invitation is sent subscribers in
//! groups ([`push_stream_core::wire::handover`]):
//!
//! ```text
//! leaving worker                                  accepting worker
//!      invitation ------------------------------------> any
//!      <----------------------------------------------- ready
//!      offer: sockets, locations, channels ----------->
//!          nothing more is sent to these               joins their channels: it delivers what comes after
//!      <----------------------------------------------- answer: sequence number for each
//!      takes and renders all messages up to that
//!      rest: unsent bytes up to that number, TLS ----->
//!          forgets them                                sends the rest, then its own messages
//! ```
//!
//! Between offer and rest both workers have the subscriber, and neither sends. If either dies then, its socket to the
//! other closes: the leaving worker continues with the subscriber as if no offer had been made; the accepting worker
//! drops it, and the reader reconnects. Subscribers that cannot be handed over (attached ones, OpenSSL's TLS, a location that
//! is gone) end as at every reload.

pub mod giving;
pub mod sessions;
mod socket;
pub mod taking;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::rc::Rc;

use ngx::ffi::*;
use push_stream_core::store::Zone;
use push_stream_core::wire::handover::LocationName;

use super::action::Action;
use super::perform::perform;
use super::profile::Audience;
use super::state::{Delivery, PROCESS};
use crate::ffi::connection::{Connection, Event, Handler};
use sessions::Key;

/// Makes the socket for invitations, unless an earlier cycle did.
pub fn prepare(zone: &Zone) -> io::Result<()> {
    if zone.handover_fds().is_none() {
        let (receiver, sender) = socket::pair(false)?;
        zone.set_handover_fds([receiver.into_raw_fd(), sender.into_raw_fd()]);
    }
    zone.count_cycle();
    Ok(())
}

/// Can connections move from one process's event loop to another's?
fn is_possible() -> bool {
    Connection::can_move()
}

/// Borrows a descriptor that stays open while it is used.
fn borrow(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: callers use it at once, and the descriptor belongs to a connection of nginx that is open, or to the process.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Makes nginx read from one of this module's sockets; the connection owns it. None if nginx has no free connection or
/// cannot watch the socket, which is closed then.
fn listen(fd: OwnedFd, key: Key, handler: Handler, log: *mut ngx_log_t) -> Option<Connection<'static>> {
    let connection = Connection::open(fd.as_raw_fd(), log)?;
    let _ = fd.into_raw_fd();
    connection.read().set_handler(handler);
    connection.set_internal();
    connection.set_data(key as usize as *mut std::ffi::c_void);
    if !connection.read().watch_read() {
        close(connection);
        return None;
    }
    Some(connection)
}

/// Takes the messages that wait in a session, and goes on listening to it.
///
/// # Safety
/// `event` is the read event of a connection that [`listen`] made, with a session's key.
unsafe fn hear(event: *mut ngx_event_t, take: impl FnOnce(&mut Delivery, Key, &mut Vec<Action>)) {
    // SAFETY: guaranteed by the caller; nginx's events live as long as the process.
    let (event, key) = unsafe {
        let event = Event::new(event);
        (event, event.connection().data() as usize as Key)
    };
    let mut actions = Vec::new();
    PROCESS.with(|delivery| take(delivery, key, &mut actions));
    perform(actions);
    // The event of a closed connection is not active.
    if event.is_active() {
        event.watch_read();
    }
}

/// Closes the connection of a session; the session is forgotten.
fn close(connection: Connection<'static>) {
    // SAFETY: made by `listen`; callers have taken it out of the state.
    unsafe { connection.close() };
}

impl Delivery {
    /// The location that has this name now.
    fn location_named(&self, name: &LocationName) -> Option<Rc<Audience>> {
        let audiences = self.settings.audiences.borrow();
        let mut of_path = audiences.iter().filter(|audience| *audience.location == *name.path);
        let found = of_path.clone().nth(name.number as usize)?;
        (of_path.by_ref().count() == name.count as usize).then(|| found.clone())
    }

    fn name_of(&self, audience: &Rc<Audience>) -> LocationName {
        let audiences = self.settings.audiences.borrow();
        let of_path = || audiences.iter().filter(|other| other.location == audience.location);
        LocationName {
            path: audience.location.to_vec(),
            number: of_path()
                .position(|other| Rc::ptr_eq(other, audience))
                .unwrap_or(usize::MAX) as u32,
            count: of_path().count() as u32,
        }
    }
}
