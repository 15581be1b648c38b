//! HTTP/2 streams: carriers, and stubs in place of requests.
//!
//! nginx's HTTP/2 code has a request for each stream until the stream is closed: frames are allocated in its pool and
//! name its connection, which is one of the stream's own. A *stub* has that and nothing else. It takes the place of a
//! request of which nothing is left to do but to send what this module gives it. Frames, windows, RST_STREAM and GOAWAY
//! stay nginx's business.

use ngx::ffi::*;

use super::connection::Connection;

/// The connection that carries a request: over HTTP/2 the client's, not the stream's. None if nginx has bytes to send on
/// it.
///
/// # Safety
/// `r` is a valid request.
pub unsafe fn carrier<'r>(r: *mut ngx_http_request_t) -> Option<Connection<'r>> {
    // SAFETY: a request has its connection, and a stream the client's.
    unsafe {
        #[cfg(ngx_feature = "http_v2")]
        if let Some(stream) = (*r).stream.as_ref() {
            let http2 = &*stream.connection;
            let carrier = Connection::new(http2.connection);
            return (http2.last_out.is_null() && !carrier.is_buffered()).then_some(carrier);
        }
        let carrier = Connection::new((*r).connection);
        (!carrier.is_buffered()).then_some(carrier)
    }
}

/// Is this a request over HTTP/2?
///
/// # Safety
/// `r` is a valid request.
pub unsafe fn is_http2(r: *mut ngx_http_request_t) -> bool {
    // SAFETY: guaranteed by the caller.
    unsafe { (*r).http_version == NGX_HTTP_VERSION_20 as ngx_uint_t && !(*r).stream.is_null() }
}

#[cfg(ngx_feature = "http_v2")]
pub use stub::{Prepared, Stream};

#[cfg(not(ngx_feature = "http_v2"))]
pub use absent::{Prepared, Stream};

#[cfg(ngx_feature = "http_v2")]
mod stub {
    use std::cell::RefCell;
    use std::ffi::c_void;
    use std::marker::PhantomData;
    use std::ptr::{self, NonNull};

    use ngx::ffi::*;

    use super::super::connection::Connection;
    use super::super::optional;

    /// What takes the place of a request. It is in the pool that nginx keeps a stream's header fields in, which is
    /// destroyed after the request.
    #[repr(C)]
    struct Stub {
        /// First: nginx's pointer to it leads to the rest.
        request: ngx_http_request_t,
        stream: ngx_http_v2_stream_t,
        cleanup: ngx_http_cleanup_t,
        /// What this module finds the reader by.
        subject: *mut c_void,
    }

    /// Bytes of a pool that frames are allocated in while they are on their way.
    const FRAMES_POOL: usize = 1024;

    /// Pools kept for the next frames.
    const SPARES: usize = 64;

    thread_local! {
        /// Empty pools for frames: most are needed for the time of one call.
        static SPARE: RefCell<Vec<*mut ngx_pool_t>> = const { RefCell::new(Vec::new()) };
    }

    fn frames_pool(log: *mut ngx_log_t) -> *mut ngx_pool_t {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            // It may have outlived the log that it was made with.
            // SAFETY: made here.
            unsafe { (*spare).log = log };
            return spare;
        }
        // SAFETY: the size is larger than a pool's head.
        unsafe { ngx_create_pool(FRAMES_POOL, log) }
    }

    /// Keeps a pool whose frames nginx has finished with, or destroys it.
    ///
    /// # Safety
    /// Nothing refers into the pool.
    unsafe fn put_frames_pool(pool: *mut ngx_pool_t) {
        // SAFETY: made by `frames_pool`.
        unsafe {
            let plain = (*pool).large.is_null() && (*pool).cleanup.is_null() && (*pool).d.next.is_null();
            if !plain || SPARE.with_borrow(Vec::len) == SPARES {
                return ngx_destroy_pool(pool);
            }
            (*pool).d.last = pool.cast::<u8>().add(size_of::<ngx_pool_t>());
            (*pool).chain = ptr::null_mut();
        }
        SPARE.with_borrow_mut(|spare| spare.push(pool));
    }

    /// A stub that is made and not in place yet.
    pub struct Prepared(NonNull<Stub>);

    impl Drop for Prepared {
        fn drop(&mut self) {
            // SAFETY: made by `new`, and not in place.
            unsafe { ngx_destroy_pool(self.0.as_ref().stream.pool) };
        }
    }

    impl Prepared {
        /// Makes a stub for a request over HTTP/2; None if something of it is still on its way, or without memory.
        ///
        /// # Safety
        /// `r` is a valid request.
        pub unsafe fn new(r: *mut ngx_http_request_t) -> Option<Prepared> {
            // SAFETY: a stream has its connections as long as it lives. The stub is in its pool, all zeroes.
            unsafe {
                let stream = (*r).stream.as_ref()?;
                let http2 = &*stream.connection;
                let is_busy = stream.queued != 0
                    || stream.waiting() != 0
                    || stream.blocked() != 0
                    || stream.in_closed() == 0
                    || stream.out_closed() != 0
                    || stream.rst_sent() != 0
                    || (*(*r).connection).error() != 0
                    || ptr::eq(http2.state.stream, stream)
                    || stream.pool == http2.state.pool;
                if is_busy {
                    return None;
                }
                let size = size_of::<ngx_pool_t>() + size_of::<Stub>();
                let pool = NonNull::new(ngx_create_pool(size.next_multiple_of(16), (*ngx_cycle).log))?;
                let Some(mut stub) = NonNull::new(ngx_pcalloc(pool.as_ptr(), size_of::<Stub>()).cast::<Stub>()) else {
                    ngx_destroy_pool(pool.as_ptr());
                    return None;
                };
                stub.as_mut().stream.pool = pool.as_ptr();
                Some(Prepared(stub))
            }
        }

        /// Puts the stub in place of the request, which is logged and freed with all it has. `subject` is for the caller to
        /// find again. The handlers of the stream's events are the caller's to set.
        ///
        /// # Safety
        /// `r` is the request that it was made for, since when nothing was done with it; nothing else needs it, and its
        /// only cleanups are nginx's own and the caller's, which is not run.
        pub unsafe fn replace<'s>(self, r: *mut ngx_http_request_t, subject: *mut c_void) -> Stream<'s> {
            // SAFETY: nothing is queued, so that only the stream's node and its connection refer to stream and request.
            unsafe {
                let stub = self.0.as_ptr();
                std::mem::forget(self);
                let (connection, old) = ((*r).connection, (*r).stream);
                let http2 = (*old).connection;
                let (own, headers_pool) = ((*stub).stream.pool, (*old).pool);

                let stream = &raw mut (*stub).stream;
                ptr::copy_nonoverlapping(old, stream, 1);
                (*http2).frames -= (*old).frames;
                (*old).frames = 0;
                (*stream).request = &raw mut (*stub).request;
                (*stream).pool = own;
                (*stream).preread = ptr::null_mut();
                (*stream).cookies = ptr::null_mut();
                forget_frames(stream);
                (*(*stream).node).stream = stream;

                let request = &mut (*stub).request;
                request.signature = (*r).signature;
                request.connection = connection;
                request.http_connection = (*r).http_connection;
                request.main_conf = (*r).main_conf;
                request.srv_conf = (*r).srv_conf;
                request.loc_conf = (*r).loc_conf;
                request.http_version = (*r).http_version;
                request.log_handler = (*r).log_handler;
                request.headers_out.status = (*r).headers_out.status;
                request.headers_in.content_length_n = -1;
                request.headers_out.content_length_n = -1;
                request.main = request;
                request.stream = stream;
                request.set_count(1);
                request.set_header_sent(1);
                // The access log has its line when the request is freed.
                request.set_logged(1);
                (*stub).subject = subject;

                // nginx takes a stream out of its queues by a cleanup, which no header file has.
                let mut cleanup = (*r).cleanup;
                while let Some(entry) = cleanup.as_mut() {
                    if entry.data == old.cast() {
                        (*stub).cleanup.handler = entry.handler;
                        (*stub).cleanup.data = stream.cast();
                        request.cleanup = &raw mut (*stub).cleanup;
                    }
                    entry.handler = None;
                    cleanup = entry.next;
                }

                ngx_http_free_request(r, 0);
                ngx_destroy_pool(headers_pool);
                (*connection).set_destroyed(0);
                (*connection).data = (&raw mut (*stub).request).cast();
                (*(*connection).log).action = c"sending to client".as_ptr().cast_mut().cast();
                Stream {
                    stub: NonNull::new_unchecked(stub),
                    life: PhantomData,
                }
            }
        }
    }

    /// Forgets frames and buffers that a stream keeps for later: their pool is given back.
    unsafe fn forget_frames(stream: *mut ngx_http_v2_stream_t) {
        // SAFETY: the stream is valid, and none of its frames is on its way.
        unsafe {
            (*stream).queued = 0;
            (*stream).frames = 0;
            (*stream).free_frames = ptr::null_mut();
            (*stream).free_frame_headers = ptr::null_mut();
            (*stream).free_bufs = ptr::null_mut();
        }
    }

    /// A stream with a stub in place of its request.
    #[derive(Clone, Copy)]
    pub struct Stream<'s> {
        stub: NonNull<Stub>,
        life: PhantomData<&'s ()>,
    }

    /// Sending failed: the stream can only be closed.
    #[derive(Debug)]
    pub struct Failed;

    impl<'s> Stream<'s> {
        /// # Safety
        /// `connection` is that of a stream with a stub, which is not closed during `'s`.
        pub unsafe fn of(connection: Connection<'s>) -> Stream<'s> {
            Stream {
                // SAFETY: nginx has the stub's request there, which is its first field.
                stub: unsafe { NonNull::new_unchecked(connection.data().cast()) },
                life: PhantomData,
            }
        }

        pub fn subject(self) -> *mut c_void {
            // SAFETY: the stub is in place.
            unsafe { self.stub.as_ref().subject }
        }

        fn request(self) -> *mut ngx_http_request_t {
            self.stub.as_ptr().cast()
        }

        fn raw(self) -> *mut ngx_http_v2_stream_t {
            // SAFETY: the stub is in place.
            unsafe { &raw mut (*self.stub.as_ptr()).stream }
        }

        pub fn connection(self) -> Connection<'s> {
            // SAFETY: a stream's connection lives as long as the stream.
            unsafe { Connection::new((*self.request()).connection) }
        }

        /// The connection that carries it.
        fn carrier(self) -> Connection<'s> {
            // SAFETY: the client's connection lives longer than its streams.
            unsafe { Connection::new((*(*self.raw()).connection).connection) }
        }

        /// Is the stream at its end, or the connection that carries it?
        pub fn is_over(self) -> bool {
            // SAFETY: the stub is in place.
            unsafe { (*(*self.request()).connection).error() != 0 }
        }

        /// Does its connection carry other streams, too?
        pub fn has_siblings(self) -> bool {
            // SAFETY: the stub is in place.
            unsafe { (*(*self.raw()).connection).processing > 1 }
        }

        /// Does nginx have no frame of the stream?
        pub fn is_idle(self) -> bool {
            // SAFETY: the stub is in place.
            unsafe { (*self.raw()).queued == 0 }
        }

        /// Makes frames of a chain and sends them as far as windows allow; returns the rest of the chain, which stays where
        /// it is. `gathers`: the frames wait for [`flush`](Stream::flush), together with those of other streams.
        ///
        /// # Safety
        /// What `chain` points to stays until the stream [is idle](Stream::is_idle) and there is no rest.
        pub unsafe fn send(self, chain: *mut ngx_chain_t, gathers: bool) -> Result<*mut ngx_chain_t, Failed> {
            // SAFETY: stream and connections are valid. nginx's function only queues frames while the carrier seems not to
            // be ready.
            unsafe {
                let connection = (*self.request()).connection;
                if (*self.request()).pool.is_null() {
                    (*self.request()).pool = frames_pool((*ngx_cycle).log);
                }
                let Some(send_chain) = (*connection).send_chain.filter(|_| !(*self.request()).pool.is_null()) else {
                    return Err(Failed);
                };
                let event = self.carrier().write();
                let holds = gathers && event.is_ready();
                if holds {
                    event.set_ready(false);
                }
                let rest = send_chain(connection, chain, 0);
                if holds {
                    event.set_ready(true);
                    // No event for each of the streams when they are flushed.
                    (*self.raw()).set_blocked(1);
                }
                // NGX_CHAIN_ERROR
                if rest.addr() == NGX_ERROR as usize {
                    Err(Failed)
                } else {
                    Ok(rest)
                }
            }
        }

        /// Sends the frames of all streams of the connection.
        pub fn flush(self) {
            // SAFETY: the client's connection is open as long as it has streams; nginx remembers a failure.
            unsafe {
                let http2 = (*self.raw()).connection;
                if !(*http2).last_out.is_null() {
                    ngx_http_v2_send_output_queue(http2);
                }
            }
        }

        /// Ends gathering: after the flush.
        pub fn settle(self) {
            // SAFETY: stream and connection are valid; as nginx does when frames were sent.
            unsafe {
                (*self.raw()).set_blocked(0);
                if self.is_idle() {
                    let connection = (*self.request()).connection;
                    (*connection).set_buffered((*connection).buffered() & !NGX_HTTP_V2_BUFFERED);
                    if (*self.raw()).exhausted() == 0 && (*self.raw()).waiting() == 0 {
                        (*(*connection).write).set_active(0);
                        (*(*connection).write).set_ready(1);
                    }
                }
            }
        }

        /// Gives back what is only needed while something is on its way: frames, and the buffer in which nginx collects TLS
        /// records.
        ///
        /// # Safety
        /// The stream [is idle](Stream::is_idle), and there is no rest of a chain.
        pub unsafe fn land(self) {
            // SAFETY: nothing refers to the frames.
            unsafe {
                let pool = std::mem::replace(&mut (*self.request()).pool, ptr::null_mut());
                if !pool.is_null() {
                    let http2 = (*self.raw()).connection;
                    (*http2).frames -= (*self.raw()).frames;
                    forget_frames(self.raw());
                    put_frames_pool(pool);
                    if (*http2).last_out.is_null() {
                        optional::ssl_free_buffer(self.carrier());
                    }
                }
            }
        }

        /// Closes the stream: properly, or by RST_STREAM if the client does not know of its end. Keeps `flight` as long as
        /// nginx may need it.
        ///
        /// # Safety
        /// No handle of the stream, and nothing that leads to one, is used afterwards.
        pub unsafe fn close<T>(self, properly: bool, flight: Option<Box<T>>) {
            // SAFETY: stream, request and connection are valid until nginx has closed the stream.
            unsafe {
                let (request, stream) = (self.request(), self.raw());
                let connection = (*request).connection;
                (*stream).set_blocked(0);
                if (*request).pool.is_null() {
                    (*request).pool = frames_pool((*ngx_cycle).log);
                }
                if (*request).pool.is_null() {
                    // nginx destroys it.
                    std::process::abort();
                }
                if let Some(flight) = flight {
                    super::super::pool::keep((*request).pool, flight);
                }
                let ended = properly && !self.is_over() && self.end();
                if !ended {
                    (*connection).set_error(1);
                    // Takes frames back that are not on their way, as when nginx terminates a request.
                    if let Some(handler) = (*self.stub.as_ptr()).cleanup.handler.take() {
                        handler(stream.cast());
                    }
                }
                ngx_http_v2_close_stream(stream, 0);
            }
        }

        /// Sends an empty frame with END_STREAM. False if that failed.
        unsafe fn end(self) -> bool {
            // SAFETY: buffer and link are in the pool that is destroyed with the request.
            unsafe {
                let pool = (*self.request()).pool;
                let buf = ngx_pcalloc(pool, size_of::<ngx_buf_t>()).cast::<ngx_buf_t>();
                let link = ngx_alloc_chain_link(pool);
                if buf.is_null() || link.is_null() {
                    return false;
                }
                (*buf).set_last_buf(1);
                (*link).buf = buf;
                (*link).next = ptr::null_mut();
                self.send(link, false).is_ok()
            }
        }
    }
}

/// This nginx has no HTTP/2.
#[cfg(not(ngx_feature = "http_v2"))]
mod absent {
    use std::ffi::c_void;
    use std::marker::PhantomData;

    use ngx::ffi::*;

    use super::super::connection::Connection;

    pub enum Prepared {}

    #[derive(Clone, Copy)]
    pub enum Never {}

    #[derive(Clone, Copy)]
    pub struct Stream<'s>(Never, PhantomData<&'s ()>);

    #[derive(Debug)]
    pub struct Failed;

    impl Prepared {
        pub unsafe fn new(_r: *mut ngx_http_request_t) -> Option<Prepared> {
            None
        }

        pub unsafe fn replace<'s>(self, _r: *mut ngx_http_request_t, _subject: *mut c_void) -> Stream<'s> {
            match self {}
        }
    }

    impl<'s> Stream<'s> {
        pub unsafe fn of(_connection: Connection<'s>) -> Stream<'s> {
            unreachable!("a stream without HTTP/2")
        }

        pub fn subject(self) -> *mut c_void {
            match self.0 {}
        }

        pub fn connection(self) -> Connection<'s> {
            match self.0 {}
        }

        pub fn is_over(self) -> bool {
            match self.0 {}
        }

        pub fn is_idle(self) -> bool {
            match self.0 {}
        }

        pub fn has_siblings(self) -> bool {
            match self.0 {}
        }

        pub unsafe fn send(self, _chain: *mut ngx_chain_t, _gathers: bool) -> Result<*mut ngx_chain_t, Failed> {
            match self.0 {}
        }

        pub fn flush(self) {}

        pub fn settle(self) {}

        pub unsafe fn land(self) {}

        pub unsafe fn close<T>(self, _properly: bool, _flight: Option<Box<T>>) {}
    }
}
