//! Handles of nginx's connections and events, valid for as long as what vouches for them: made where nginx passes one,
//! or borrowed from a subscriber, whose connection is open as long as it is registered.
//!
//! All of nginx runs in one thread, and its connections and events stay where they are until they are closed; closing
//! one is the only `unsafe` operation.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use ngx::ffi::*;

use super::pool;

/// An open connection.
#[derive(Clone, Copy)]
pub struct Connection<'c> {
    raw: NonNull<ngx_connection_t>,
    life: PhantomData<&'c ()>,
}

/// A connection's event for reading or writing.
#[derive(Clone, Copy)]
pub struct Event<'c> {
    raw: NonNull<ngx_event_t>,
    life: PhantomData<&'c ()>,
}

/// The type of an event's handler.
pub type Handler = unsafe extern "C" fn(*mut ngx_event_t);

/// Outcome of reading from or writing to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// This many bytes, at least one.
    Bytes(usize),
    /// Nothing can be transferred now.
    Again,
    /// Nothing can be transferred any more; for reading also: the peer has closed its side.
    Over,
}

impl<'c> Connection<'c> {
    /// # Safety
    /// `raw` is open during `'c`, with events and a log, as nginx makes it.
    #[inline]
    pub unsafe fn new(raw: *mut ngx_connection_t) -> Connection<'c> {
        Connection {
            // SAFETY: guaranteed by the caller.
            raw: unsafe { NonNull::new_unchecked(raw) },
            life: PhantomData,
        }
    }

    /// Opens a connection of nginx for a descriptor, which stays the caller's until then; its events are not watched yet.
    /// None if there is no free one.
    pub fn open(fd: i32, log: *mut ngx_log_t) -> Option<Connection<'static>> {
        // SAFETY: what nginx returns is NULL, or open until it is closed by its owner.
        unsafe {
            let raw = NonNull::new(ngx_get_connection(fd, log))?;
            let connection = Connection { raw, life: PhantomData };
            connection.set_log(log);
            Some(connection)
        }
    }

    /// Opens a connection of nginx for the socket of a client without TLS, as one that was accepted; it owns the socket
    /// then. Its events are not watched yet.
    pub fn accepted(socket: OwnedFd, log: *mut ngx_log_t) -> Option<Connection<'static>> {
        let connection = Connection::open(socket.as_raw_fd(), log)?;
        let _ = socket.into_raw_fd();
        let raw = connection.get();
        // SAFETY: nginx's functions are chosen, and its counter, which all of its processes share, is there, before any
        // connection is opened.
        unsafe {
            raw.recv = ngx_io.recv;
            raw.send = ngx_io.send;
            raw.recv_chain = ngx_io.recv_chain;
            raw.send_chain = ngx_io.send_chain;
            raw.number = AtomicUsize::from_ptr(ngx_connection_counter.cast()).fetch_add(1, Ordering::Relaxed)
                as ngx_atomic_uint_t;
        }
        raw.type_ = libc::SOCK_STREAM;
        raw.set_tcp_nodelay(ngx_connection_tcp_nodelay_e_NGX_TCP_NODELAY_SET);
        connection.write().set_ready(true);
        Some(connection)
    }

    /// Can connections move from one process's event loop to another's? Only implemented for epoll.
    pub fn can_move() -> bool {
        // SAFETY: set before any worker handles events.
        unsafe {
            let (add, del) = (ngx_event_actions.add_conn, ngx_event_actions.del_conn);
            ngx_event_flags & NGX_USE_EPOLL_EVENT as ngx_uint_t != 0 && add.is_some() && del.is_some()
        }
    }

    /// Watches both events of the connection; false if that fails.
    pub fn watch(self) -> bool {
        // SAFETY: chosen before any worker handles events; the connection is open.
        unsafe {
            ngx_event_actions
                .add_conn
                .is_some_and(|add| add(self.raw()) == NGX_OK as ngx_int_t)
        }
    }

    /// Ends watching. Closing alone does not where another descriptor keeps the socket open.
    pub fn unwatch(self) {
        // SAFETY: as above.
        unsafe {
            if let Some(remove) = ngx_event_actions.del_conn {
                remove(self.raw(), 0);
            }
        }
    }

    #[inline]
    pub fn raw(self) -> *mut ngx_connection_t {
        self.raw.as_ptr()
    }

    #[inline]
    fn get(self) -> &'c mut ngx_connection_t {
        // SAFETY: open during the life of the handle. References made here are used within one expression, so that no two
        // of them overlap.
        unsafe { &mut *self.raw.as_ptr() }
    }

    #[inline]
    pub fn fd(self) -> i32 {
        self.get().fd
    }

    pub fn socket(self) -> BorrowedFd<'c> {
        // SAFETY: it is open as long as the connection.
        unsafe { BorrowedFd::borrow_raw(self.fd()) }
    }

    #[inline]
    pub fn log(self) -> *mut ngx_log_t {
        self.get().log
    }

    /// Are messages of this level logged?
    pub fn logs(self, level: u32) -> bool {
        // SAFETY: an open connection has a log.
        unsafe { (*self.log()).log_level >= level as ngx_uint_t }
    }

    /// The log of the connection and of its events.
    pub fn set_log(self, log: *mut ngx_log_t) {
        self.get().log = log;
        self.read().get().log = log;
        self.write().get().log = log;
    }

    /// The text of the client's address.
    pub fn client(self) -> &'c [u8] {
        self.get().addr_text.as_bytes()
    }

    #[inline]
    pub fn read(self) -> Event<'c> {
        // SAFETY: an open connection has its events.
        unsafe { Event::new(self.get().read) }
    }

    #[inline]
    pub fn write(self) -> Event<'c> {
        // SAFETY: as above.
        unsafe { Event::new(self.get().write) }
    }

    /// What its handlers find it by.
    #[inline]
    pub fn data(self) -> *mut c_void {
        self.get().data
    }

    pub fn set_data(self, data: *mut c_void) {
        self.get().data = data;
    }

    pub fn has_pool(self) -> bool {
        !self.get().pool.is_null()
    }

    #[inline]
    pub fn has_tls(self) -> bool {
        !self.get().ssl.is_null()
    }

    /// Does nginx hold unsent bytes?
    #[inline]
    pub fn is_buffered(self) -> bool {
        self.get().buffered() != 0
    }

    /// Says that bytes of this module wait below the output filters, as those of TLS do in nginx.
    pub fn set_buffered(self, waits: bool) {
        const TLS: u32 = 1;
        self.get().set_buffered(if waits { TLS } else { 0 });
    }

    /// Has nginx told it to close?
    #[inline]
    pub fn is_to_close(self) -> bool {
        self.get().close() != 0
    }

    pub fn set_error(self) {
        self.get().set_error(1);
    }

    pub fn set_timed_out(self) {
        self.get().set_timedout(1);
    }

    /// nginx may close it whenever it exits or is short of connections.
    pub fn set_idle(self) {
        self.get().set_idle(1);
    }

    /// It belongs to nginx's own processes: no alert at exit that it is still open.
    pub fn set_internal(self) {
        self.read().get().set_channel(1);
        self.write().get().set_channel(1);
    }

    pub fn set_no_delay(self) {
        // SAFETY: the connection is open; a failure is logged.
        unsafe { ngx_tcp_nodelay(self.raw()) };
    }

    /// Passes bytes to the connection: to its socket, or to TLS.
    #[inline]
    pub fn send(self, bytes: &[u8]) -> Transfer {
        let Some(send) = self.get().send else {
            return Transfer::Over;
        };
        // SAFETY: the connection is open, and nginx only reads the bytes.
        outcome(unsafe { send(self.raw(), bytes.as_ptr().cast_mut(), bytes.len()) }, 0)
    }

    /// Reads into `buffer`.
    #[inline]
    pub fn recv(self, buffer: &mut [u8]) -> Transfer {
        let Some(recv) = self.get().recv else {
            return Transfer::Over;
        };
        // SAFETY: the connection is open, and the buffer as long as said.
        outcome(unsafe { recv(self.raw(), buffer.as_mut_ptr(), buffer.len()) }, -1)
    }

    /// Looks at the next byte in the socket, without taking it: the number of bytes, 0 at the end.
    pub fn peek(self) -> io::Result<usize> {
        let mut byte = 0u8;
        // SAFETY: the connection is open.
        let peeked = unsafe { libc::recv(self.fd(), (&raw mut byte).cast(), 1, libc::MSG_PEEK) };
        usize::try_from(peeked).map_err(|_| io::Error::last_os_error())
    }

    /// Sends bytes to the socket, past nginx: for a connection without TLS.
    #[inline]
    pub fn send_to(socket: i32, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel checks the descriptor; the bytes are valid.
        let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Logs a failed system call, at the level that nginx gives to such an error of a client.
    pub fn log_error(self, error: &io::Error, call: &'static std::ffi::CStr) {
        // SAFETY: the connection is open; nginx only prints the text.
        unsafe {
            ngx_connection_error(self.raw(), error.raw_os_error().unwrap_or(0), call.as_ptr().cast_mut());
        }
    }

    /// Runs `work` with the socket as a stream of the standard library, which does not close it.
    pub fn with_socket<R>(self, work: impl FnOnce(&TcpStream) -> R) -> R {
        // SAFETY: the descriptor is open, and the stream is not dropped.
        work(&ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(self.fd()) }))
    }

    /// Makes the later close discard unsent bytes and send a reset.
    pub fn reset_on_close(self) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // SAFETY: the value is of the option's type.
        unsafe {
            libc::setsockopt(
                self.fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as libc::socklen_t,
            );
        }
    }

    /// Makes the kernel drop the connection when the peer has acknowledged nothing for this long (`TCP_USER_TIMEOUT`,
    /// RFC 5482): a peer that vanished, or whose window stays closed. Sockets that are not TCP are ignored.
    #[cfg(target_os = "linux")]
    pub fn set_user_timeout(self, timeout_ms: u32) {
        // SAFETY: the option takes an unsigned int.
        unsafe {
            libc::setsockopt(
                self.fd(),
                libc::IPPROTO_TCP,
                libc::TCP_USER_TIMEOUT,
                ptr::from_ref(&timeout_ms).cast(),
                size_of_val(&timeout_ms) as libc::socklen_t,
            );
        }
    }

    /// Other systems have no such option.
    #[cfg(not(target_os = "linux"))]
    pub fn set_user_timeout(self, _timeout_ms: u32) {}

    /// May its pool be freed? TLS lives in it, and other modules may have registered a cleanup there. This module's own is
    /// for what it has learned of a TLS that is gone.
    pub fn can_do_without_pool(self) -> bool {
        // SAFETY: the pool of a connection is NULL or valid, and so are its cleanups.
        let bare = unsafe {
            let pool = self.get().pool.as_ref();
            pool.is_some_and(|pool| pool.cleanup.is_null() || pool::are_own(pool.cleanup))
        };
        bare && !self.has_tls()
    }

    /// Frees the pool of a connection that [can do without it](Connection::can_do_without_pool), and clears the pointers
    /// into it. From then on it logs to `log`.
    ///
    /// # Safety
    /// No request of the connection exists, and nothing of the caller's is in the pool.
    pub unsafe fn drop_pool(self, log: *mut ngx_log_t) {
        self.set_log(log);
        let connection = self.get();
        connection.sockaddr = ptr::null_mut();
        connection.socklen = 0;
        connection.addr_text = ngx_str_t::empty();
        connection.local_sockaddr = ptr::null_mut();
        connection.local_socklen = 0;
        connection.proxy_protocol = ptr::null_mut();
        // SAFETY: nothing else refers to it.
        unsafe { ngx_destroy_pool(std::mem::replace(&mut connection.pool, ptr::null_mut())) };
    }

    /// Has TLS replaced the handlers of the events, because a read waits for a write or the reverse?
    #[cfg(ngx_feature = "ssl")]
    pub fn is_busy_with_tls(self) -> bool {
        // SAFETY: NULL, or valid as long as the connection.
        unsafe { self.get().ssl.as_ref() }
            .is_some_and(|ssl| ssl.saved_read_handler.is_some() || ssl.saved_write_handler.is_some())
    }

    /// This nginx has no TLS.
    #[cfg(not(ngx_feature = "ssl"))]
    pub fn is_busy_with_tls(self) -> bool {
        false
    }

    /// Lets bytes pass to the socket as they are, once TLS is gone.
    pub fn use_socket_directly(self) {
        // SAFETY: nginx's functions are chosen before any connection is opened.
        unsafe {
            self.get().recv = ngx_io.recv;
            self.get().recv_chain = ngx_io.recv_chain;
            self.get().send = ngx_io.send;
            self.get().send_chain = ngx_io.send_chain;
        }
    }

    /// Shuts the sending side of the socket down.
    pub fn shut_down_sending(self) {
        // SAFETY: the kernel checks the descriptor.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_WR) };
    }

    /// Closes a client's connection. One without a pool has neither TLS nor anything else that nginx's function would
    /// handle.
    ///
    /// # Safety
    /// As for [`Connection::close`]; it has no request.
    pub unsafe fn close_client(self) {
        // SAFETY: open until now.
        unsafe {
            if self.has_pool() {
                return ngx_http_close_connection(self.raw());
            }
            self.get().set_destroyed(1);
            ngx_close_connection(self.raw());
        }
    }

    /// Closes a connection that is no http client's, with its descriptor.
    ///
    /// # Safety
    /// No handle of it, and nothing that leads to one, is used afterwards.
    pub unsafe fn close(self) {
        // SAFETY: open until now.
        unsafe { ngx_close_connection(self.raw()) };
    }

    /// Gives a connection back whose descriptor stays open.
    ///
    /// # Safety
    /// As for [`Connection::close`].
    pub unsafe fn give_back(self) {
        // SAFETY: open until now.
        unsafe { ngx_free_connection(self.raw()) };
    }
}

/// Reads nginx's return value of a transfer; `end` and below it mean that nothing more will come.
#[inline]
fn outcome(code: isize, end: isize) -> Transfer {
    match usize::try_from(code) {
        Ok(bytes) if bytes > 0 => Transfer::Bytes(bytes),
        _ if code == NGX_AGAIN as isize || code == 0 && end == 0 => Transfer::Again,
        _ => Transfer::Over,
    }
}

impl<'c> Event<'c> {
    /// # Safety
    /// `raw` is an event of a connection that is open during `'c`, or one of this module's own.
    #[inline]
    pub unsafe fn new(raw: *mut ngx_event_t) -> Event<'c> {
        Event {
            // SAFETY: guaranteed by the caller.
            raw: unsafe { NonNull::new_unchecked(raw) },
            life: PhantomData,
        }
    }

    #[inline]
    fn get(self) -> &'c mut ngx_event_t {
        // SAFETY: as for connections.
        unsafe { &mut *self.raw.as_ptr() }
    }

    /// The connection of an event that belongs to one.
    ///
    /// # Safety
    /// The event is a connection's.
    #[inline]
    pub unsafe fn connection(self) -> Connection<'c> {
        // SAFETY: nginx has the connection in each of its events' data.
        unsafe { Connection::new(self.get().data.cast()) }
    }

    pub fn set_handler(self, handler: Handler) {
        self.get().handler = Some(handler);
    }

    #[inline]
    pub fn is_ready(self) -> bool {
        self.get().ready() != 0
    }

    #[inline]
    pub fn set_ready(self, ready: bool) {
        self.get().set_ready(ready.into());
    }

    pub fn set_error(self) {
        self.get().set_error(1);
    }

    #[inline]
    pub fn is_timed_out(self) -> bool {
        self.get().timedout() != 0
    }

    /// Does `limit_rate` hold it back?
    #[inline]
    pub fn is_delayed(self) -> bool {
        self.get().delayed() != 0
    }

    /// Is it watched?
    pub fn is_active(self) -> bool {
        self.get().active() != 0
    }

    /// Has the event method reported that the peer has closed its side?
    #[cfg(ngx_feature = "have_epollrdhup")]
    pub fn is_at_end(self) -> bool {
        self.get().pending_eof() != 0
    }

    /// Does the event method report that a client has closed its side?
    #[cfg(ngx_feature = "have_epollrdhup")]
    pub fn is_told_about_ends() -> bool {
        // SAFETY: set before any event is handled.
        unsafe { ngx_event_flags & NGX_USE_EPOLL_EVENT as ngx_uint_t != 0 && ngx_use_epoll_rdhup != 0 }
    }

    /// The event method does not report it.
    #[cfg(not(ngx_feature = "have_epollrdhup"))]
    pub fn is_at_end(self) -> bool {
        false
    }

    /// The event method does not report that a client has closed its side.
    #[cfg(not(ngx_feature = "have_epollrdhup"))]
    pub fn is_told_about_ends() -> bool {
        false
    }

    #[inline]
    pub fn has_timer(self) -> bool {
        self.get().timer_set() != 0
    }

    /// Is it due before `due_ms` of nginx's clock?
    pub fn is_due_before(self, due_ms: ngx_msec_t) -> bool {
        self.has_timer() && self.get().timer.key <= due_ms
    }

    /// Sets the timer; one that is set already moves, unless the difference is small.
    #[inline]
    pub fn add_timer(self, delay_ms: u64) {
        // SAFETY: the event stays where it is while the timer is set, as those of open connections do.
        unsafe { ngx_add_timer(self.raw.as_ptr(), delay_ms as ngx_msec_t) };
    }

    #[inline]
    pub fn drop_timer(self) {
        if self.has_timer() {
            // SAFETY: it is set.
            unsafe { ngx_del_timer(self.raw.as_ptr()) };
        }
    }

    /// Drops the timer, also one that has fired.
    pub fn forget_timeout(self) {
        self.drop_timer();
        self.get().set_timedout(0);
    }

    /// Takes it out of nginx's timers and queues.
    pub fn forget(self) {
        self.drop_timer();
        if self.get().posted() != 0 {
            // SAFETY: it is in one of nginx's queues.
            unsafe { ngx_delete_posted_event(self.raw.as_ptr()) };
        }
    }

    /// Makes nginx call the handler when the current events are handled.
    pub fn post(self) {
        // SAFETY: event and queue are valid.
        unsafe { ngx_post_event(self.raw.as_ptr(), &raw mut ngx_posted_events) };
    }

    /// Makes nginx call the handler after it has polled for other events.
    pub fn post_next(self) {
        // SAFETY: as above.
        unsafe { ngx_post_event(self.raw.as_ptr(), &raw mut ngx_posted_next_events) };
    }

    /// Watches for input; false if that fails.
    #[inline]
    pub fn watch_read(self) -> bool {
        // SAFETY: the event is a connection's.
        unsafe { ngx_handle_read_event(self.raw.as_ptr(), 0) == NGX_OK as ngx_int_t }
    }

    /// Watches for room to send; a failure shows at the next send.
    #[inline]
    pub fn watch_write(self) {
        // SAFETY: the event is a connection's.
        unsafe { ngx_handle_write_event(self.raw.as_ptr(), 0) };
    }
}

/// Is this process about to exit?
pub fn is_exiting() -> bool {
    // SAFETY: nginx's signal handlers only set them.
    unsafe { ngx_exiting != 0 || ngx_terminate != 0 }
}
