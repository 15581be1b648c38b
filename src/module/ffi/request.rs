//! A handle of nginx's request, valid during the call from nginx that it was passed to.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::net::Ipv6Addr;
use std::ptr;

use ngx::ffi::*;
use push_stream_core::wire::{percent, query};

use super::{body, lookup, pool};

/// What nginx could not do for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    NoMemory,
    /// Evaluate the variables of a directive.
    Variables,
    /// What nginx answers by itself, with this code.
    Nginx(ngx_int_t),
}

/// A request, valid for `'r`: during the call from nginx that it was passed to, and not beyond its finalization.
#[derive(Clone, Copy)]
pub struct Request<'r> {
    raw: *mut ngx_http_request_t,
    life: PhantomData<&'r ()>,
}

impl<'r> Request<'r> {
    /// # Safety
    /// `raw` is a request in processing; it is not freed during `'r`.
    pub unsafe fn new(raw: *mut ngx_http_request_t) -> Self {
        Request { raw, life: PhantomData }
    }

    pub fn raw(self) -> *mut ngx_http_request_t {
        self.raw
    }

    /// What this module has made for the request's location, or for the `if` block that it is in.
    pub(crate) fn location_conf(self) -> *const c_void {
        // SAFETY: the array has an entry per http module.
        unsafe { (*self.raw).loc_conf.add(lookup::own_index()).read() }
    }

    /// What this module has made for the http block.
    pub(crate) fn main_conf(self) -> *const c_void {
        // SAFETY: as above.
        unsafe { (*self.raw).main_conf.add(lookup::own_index()).read() }
    }

    pub fn is_main(self) -> bool {
        // SAFETY: the request is valid.
        unsafe { (*self.raw).main == self.raw }
    }

    /// One of nginx's `NGX_HTTP_*` methods.
    pub fn method(self) -> u32 {
        // SAFETY: the request is valid.
        unsafe { (*self.raw).method as u32 }
    }

    /// The first header of this name, in any case.
    pub fn header(self, name: &'static HeaderName) -> Option<&'r [u8]> {
        self.headers(name).next()
    }

    /// All headers of this name, in any case.
    pub fn headers(self, name: &'static HeaderName) -> impl Iterator<Item = &'r [u8]> {
        // SAFETY: the request is valid.
        let mut part: *const ngx_list_part_t = unsafe { &raw const (*self.raw).headers_in.headers.part };
        let mut index = 0;
        std::iter::from_fn(move || {
            // SAFETY: the header list is complete when a content handler runs; its strings are in the request's memory.
            unsafe {
                while let Some(headers) = part.as_ref() {
                    if index < headers.nelts {
                        index += 1;
                        let header = &*headers.elts.cast::<ngx_table_elt_t>().add(index - 1);
                        if header.hash == name.hash && header.key.as_bytes().eq_ignore_ascii_case(name.text.as_bytes())
                        {
                            return Some(header.value.as_bytes());
                        }
                        continue;
                    }
                    (part, index) = (headers.next, 0);
                }
            }
            None
        })
    }

    /// Content-Type, which nginx keeps in a field of its own.
    pub fn content_type(self) -> Option<&'r [u8]> {
        // SAFETY: the field is NULL or points to a header of the request.
        unsafe { (*self.raw).headers_in.content_type.as_ref() }.map(|header| header.value.as_bytes())
    }

    /// The value of a directive with variables, percent-decoded; None if the directive is not set.
    pub fn value(self, directive: *mut ngx_http_complex_value_t) -> Result<Option<Vec<u8>>, Failure> {
        if directive.is_null() {
            return Ok(None);
        }
        let mut value = ngx_str_t::empty();
        // SAFETY: the value was compiled into the configuration, which outlives the request.
        let code = unsafe { ngx_http_complex_value(self.raw, directive, &mut value) };
        if code != NGX_OK as ngx_int_t {
            return Err(Failure::Variables);
        }
        Ok(Some(percent::decode(value.as_bytes())))
    }

    /// A query argument, percent-decoded.
    pub fn argument(self, name: &str) -> Option<Vec<u8>> {
        let mut value = ngx_str_t::empty();
        // SAFETY: the request is valid; nginx only reads the name.
        let code = unsafe { ngx_http_arg(self.raw, name.as_ptr().cast_mut(), name.len(), &mut value) };
        (code == NGX_OK as ngx_int_t).then(|| percent::decode(value.as_bytes()))
    }

    /// All query arguments, percent-decoded.
    pub fn arguments(self) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> + 'r {
        // SAFETY: the request is valid and keeps its arguments, of which there may be none.
        let text: &'r [u8] = unsafe {
            let args = (*self.raw).args;
            if args.len == 0 {
                &[]
            } else {
                std::slice::from_raw_parts(args.data, args.len)
            }
        };
        query::arguments(text)
    }

    /// Adds a header to the answer. After an internal redirect it replaces the header set by the earlier location.
    pub fn add_header(self, name: &'static str, value: &[u8]) -> Result<(), Failure> {
        // SAFETY: the request is valid; the value is copied to where it lives as long as the request.
        unsafe {
            if (*self.raw).internal() != 0 {
                self.hide_headers(name);
            }
            let copy = pool::copy((*self.raw).pool, value).ok_or(Failure::NoMemory)?;
            let value = ngx_str_t {
                len: value.len(),
                data: copy.as_ptr(),
            };
            self.push_header(name, value)?;
        }
        Ok(())
    }

    /// # Safety
    /// The value lives as long as the request.
    unsafe fn push_header(self, name: &'static str, value: ngx_str_t) -> Result<*mut ngx_table_elt_t, Failure> {
        // SAFETY: the request is valid.
        unsafe {
            let header = ngx_list_push(&raw mut (*self.raw).headers_out.headers).cast::<ngx_table_elt_t>();
            if header.is_null() {
                return Err(Failure::NoMemory);
            }
            // Zero all fields that nginx may read, including the link that later versions have.
            ptr::write_bytes(header, 0, 1);
            (*header).hash = 1;
            (*header).key = borrowed(name.as_bytes());
            (*header).value = value;
            Ok(header)
        }
    }

    /// Removes all headers of this name, in any case, from the answer. The caller handles nginx's fields that point to
    /// them.
    fn hide_headers(self, name: &str) {
        // SAFETY: the request is valid; each part of the list holds `nelts` headers.
        unsafe {
            let mut part: *const ngx_list_part_t = &raw const (*self.raw).headers_out.headers.part;
            while let Some(headers) = part.as_ref() {
                for index in 0..headers.nelts {
                    let header = &mut *headers.elts.cast::<ngx_table_elt_t>().add(index);
                    if header.key.as_bytes().eq_ignore_ascii_case(name.as_bytes()) {
                        header.hash = 0;
                    }
                }
                part = headers.next;
            }
        }
    }

    /// Sets Expires, replacing any other. nginx's own `expires` finds it and replaces it.
    pub fn set_expires(self, value: &'static str) -> Result<(), Failure> {
        // SAFETY: the request is valid, and the value constant.
        unsafe {
            let out = &raw mut (*self.raw).headers_out;
            if !(*out).expires.is_null() {
                self.hide_headers("Expires");
            }
            (*out).expires = self.push_header("Expires", borrowed(value.as_bytes()))?;
        }
        Ok(())
    }

    /// Sets Cache-Control, replacing any other. nginx's own `expires` finds it and replaces it.
    pub fn set_cache_control(self, value: &'static str) -> Result<(), Failure> {
        // SAFETY: the request is valid, and the value constant.
        unsafe {
            let out = &raw mut (*self.raw).headers_out;
            if (*out).cache_control.is_given() {
                self.hide_headers("Cache-Control");
            }
            let header = self.push_header("Cache-Control", borrowed(value.as_bytes()))?;
            (*out).cache_control.set_only((*self.raw).pool, header)
        }
    }

    /// Drops the entity headers of an upstream application that handed the request over (`X-Accel-Redirect`), as far as
    /// nginx keeps them: they describe another body.
    pub fn forget_entity(self) {
        // SAFETY: the request is valid; each field is NULL or points into the list of headers.
        unsafe {
            let out = &mut (*self.raw).headers_out;
            for header in [
                &mut out.last_modified,
                &mut out.accept_ranges,
                &mut out.content_length,
                &mut out.content_range,
                &mut out.content_encoding,
                &mut out.etag,
            ] {
                if let Some(header) = std::mem::replace(header, ptr::null_mut()).as_mut() {
                    header.hash = 0;
                }
            }
            out.last_modified_time = -1;
            (*self.raw).set_allow_ranges(0);
        }
    }

    /// Does the location have an `error_page` for this status that nginx would use now?
    pub fn has_error_page(self, status: u32) -> bool {
        // SAFETY: the request is valid; the core module fills its configuration at every level.
        unsafe {
            let pages = lookup::core_location(self.raw).error_pages;
            if pages.is_null() || (*self.raw).error_page() != 0 {
                return false;
            }
            let pages = std::slice::from_raw_parts((*pages).elts.cast::<ngx_http_err_page_t>(), (*pages).nelts);
            pages.iter().any(|page| page.status == status as ngx_int_t)
        }
    }

    /// The error log of the connection, which adds client and request to each line.
    pub fn error_log(self) -> *mut ngx_log_t {
        // SAFETY: the request is valid, and so is its connection.
        unsafe { (*(*self.raw).connection).log }
    }

    pub fn is_head_sent(self) -> bool {
        // SAFETY: the request is valid.
        unsafe { (*self.raw).header_sent() != 0 }
    }

    /// Sets status and length of the answer; None = not known yet.
    pub fn set_status(self, status: u32, length: Option<usize>) {
        // SAFETY: the request is valid.
        unsafe {
            let out = &mut (*self.raw).headers_out;
            out.status = status as ngx_uint_t;
            out.content_length_n = length.map_or(-1, |length| length as off_t);
            // This module decides about 304 itself.
            (*self.raw).set_disable_not_modified(1);
        }
    }

    /// Does the client's protocol version know content codings?
    pub fn may_be_coded(self) -> bool {
        // SAFETY: the request is valid.
        unsafe { (*self.raw).http_version >= NGX_HTTP_VERSION_11 as ngx_uint_t }
    }

    /// Sets Content-Encoding. nginx's own filters then leave the answer as it is.
    pub fn set_content_encoding(self, coding: &'static str) -> Result<(), Failure> {
        // SAFETY: the request is valid, and the text constant.
        unsafe {
            let header = self.push_header("Content-Encoding", borrowed(coding.as_bytes()))?;
            (*self.raw).headers_out.content_encoding = header;
        }
        Ok(())
    }

    /// Sets Last-Modified.
    pub fn set_last_modified(self, unix_secs: u64) {
        // SAFETY: the request is valid.
        unsafe { (*self.raw).headers_out.last_modified_time = unix_secs as time_t };
    }

    /// Sets the content type; parameters after `;` are not part of the type that other modules compare.
    pub fn set_content_type(self, content_type: &'static str) {
        // Not `find`: that searches long texts fast, and begins slowly.
        let len = content_type.bytes().position(|byte| byte == b';');
        // SAFETY: the request is valid, the text constant.
        unsafe {
            let out = &mut (*self.raw).headers_out;
            out.content_type = borrowed(content_type.as_bytes());
            out.content_type_len = len.unwrap_or(content_type.len());
            out.content_type_lowcase = ptr::null_mut();
            // Drop the charset set by an upstream application that handed the request over.
            out.charset = ngx_str_t::empty();
        }
    }

    /// Sets the content type that nginx derives from the URI.
    pub fn set_default_content_type(self) -> Result<(), Failure> {
        // SAFETY: the request is valid.
        let code = unsafe { ngx_http_set_content_type(self.raw) };
        if code == NGX_OK as ngx_int_t {
            Ok(())
        } else {
            Err(Failure::NoMemory)
        }
    }

    /// Is this an HTTP/2 stream whose client is still sending a body?
    #[cfg(not(ngx_feature = "http_v2"))]
    pub fn is_stream_with_body_to_come(self) -> bool {
        false
    }

    /// Is this an HTTP/2 stream whose client is still sending a body?
    #[cfg(ngx_feature = "http_v2")]
    pub fn is_stream_with_body_to_come(self) -> bool {
        // SAFETY: the request is valid; it has a stream only over HTTP/2.
        unsafe {
            let unread = (*self.raw).request_body.is_null();
            unread
                && self.is_main()
                && (*self.raw)
                    .stream
                    .as_ref()
                    .is_some_and(|stream| stream.in_closed() == 0)
        }
    }

    /// Lets the location of this path answer, as it would answer the client. Returns the handler's return value.
    pub fn redirect(self, path: &[u8], arguments: &[u8]) -> Result<ngx_int_t, Failure> {
        // SAFETY: the request is valid, and nothing was sent yet; the texts live as long as it.
        unsafe {
            let keep = |text: &[u8]| {
                let data = pool::copy((*self.raw).pool, text).ok_or(Failure::NoMemory)?.as_ptr();
                Ok(ngx_str_t { len: text.len(), data })
            };
            let (mut path, mut arguments) = (keep(path)?, keep(arguments)?);
            Ok(ngx_http_internal_redirect(self.raw, &mut path, &mut arguments))
        }
    }

    /// Lets nginx read the body, then calls `then`. Returns the handler's return value.
    pub fn read_body(self, then: unsafe extern "C" fn(*mut ngx_http_request_t)) -> Result<ngx_int_t, Failure> {
        // SAFETY: the request is valid and its body was not read by any other code.
        let code = unsafe { ngx_http_read_client_request_body(self.raw, Some(then)) };
        if code >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t {
            return Err(Failure::Nginx(code));
        }
        Ok(NGX_DONE as ngx_int_t)
    }

    /// Lets nginx read and drop the request's body, so that it is not parsed as the next request.
    pub fn discard_body(self) -> Result<(), Failure> {
        // SAFETY: the request is valid and its body was not read by any other code, or was read completely.
        let code = unsafe { ngx_http_discard_request_body(self.raw) };
        if code == NGX_OK as ngx_int_t {
            Ok(())
        } else {
            Err(Failure::Nginx(code))
        }
    }

    /// Sends the head of the answer. True if there may be a body.
    pub fn send_head(self) -> Result<bool, ngx_int_t> {
        // SAFETY: the request is valid and its head was not sent before.
        let code = unsafe { ngx_http_send_header(self.raw) };
        if code == NGX_ERROR as ngx_int_t || code > NGX_OK as ngx_int_t {
            return Err(code);
        }
        // SAFETY: the request is valid.
        Ok(unsafe { (*self.raw).header_only() } == 0)
    }

    /// Key of the client's address, as set by realip and similar modules: the whole of an IPv4 address, the network
    /// part of an IPv6 one. None for unix sockets.
    pub fn address_key(self) -> Option<Vec<u8>> {
        // SAFETY: a connection has the address of its peer, as long as its family says.
        unsafe {
            let address = (*(*self.raw).connection).sockaddr.cast::<libc::sockaddr>();
            match i32::from(address.as_ref()?.sa_family) {
                libc::AF_INET => {
                    let address = &*address.cast::<libc::sockaddr_in>();
                    Some(address.sin_addr.s_addr.to_ne_bytes().to_vec())
                }
                libc::AF_INET6 => {
                    let address = Ipv6Addr::from((*address.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr);
                    Some(match address.to_ipv4_mapped() {
                        Some(mapped) => mapped.octets().to_vec(),
                        None => address.octets()[..8].to_vec(),
                    })
                }
                _ => None,
            }
        }
    }

    /// The connection is not used for another request.
    pub fn close_afterwards(self) {
        // SAFETY: the request is valid.
        unsafe { (*self.raw).set_keepalive(0) };
    }

    /// Is this a whole HTTP/1 connection, which can switch to another protocol?
    pub fn may_switch_protocols(self) -> bool {
        // SAFETY: the request is valid.
        let version = unsafe { (*self.raw).http_version };
        self.is_main() && version <= NGX_HTTP_VERSION_11 as ngx_uint_t
    }

    /// The head is (about to be) sent without nginx's filters. Later input is not a request: it is read and dropped
    /// when the connection is closed.
    pub fn head_is_sent(self, status: u32) {
        self.set_status(status, None);
        // SAFETY: the request is valid.
        unsafe {
            (*self.raw).set_header_sent(1);
            (*self.raw).set_lingering_close(1);
        }
    }

    /// Sends a short answer past nginx's filters, head included. It is the first on its connection, or all earlier
    /// output was sent, so the socket has room for it.
    pub fn send_raw(self, bytes: &[u8], status: u32) -> ngx_int_t {
        self.head_is_sent(status);
        // SAFETY: request and connection are valid; an open connection has a `send`.
        unsafe {
            let connection = (*self.raw).connection;
            let sent = (*connection).send.map_or(NGX_ERROR as isize, |send| {
                send(connection, bytes.as_ptr().cast_mut(), bytes.len())
            });
            if sent == bytes.len() as isize {
                NGX_OK as ngx_int_t
            } else {
                NGX_ERROR as ngx_int_t
            }
        }
    }

    /// Sends a short piece of the body through the output filters.
    pub fn send_body_copy(self, bytes: &[u8]) -> ngx_int_t {
        // SAFETY: the request is valid, and its head was sent before.
        unsafe { body::send_copy(self.raw, bytes) }
    }

    /// As [`Request::send_body`]; buffers that nginx still needs are kept in `sent`, which lives as long as the
    /// request.
    pub fn send_body_kept(self, bytes: Vec<u8>, last: bool, sent: &mut Vec<body::Sent>) -> ngx_int_t {
        // SAFETY: the request is valid, and its head was sent before; the caller keeps what was sent.
        unsafe { body::send_kept(self.raw, bytes, last, sent) }
    }

    /// Sends a piece of the body through the output filters.
    pub fn send_body(self, bytes: Vec<u8>, last: bool) -> ngx_int_t {
        // SAFETY: the request is valid, and its head was sent before.
        unsafe { body::send(self.raw, bytes, last) }
    }
}

/// The lines of a header that may have several, as nginx keeps them with an answer: up to 1.22 an array of pointers,
/// since 1.23 a linked list.
trait HeaderLines {
    /// Is there a line already?
    fn is_given(&self) -> bool;

    /// Makes this the only line.
    ///
    /// # Safety
    /// `pool` is the request's; the header is in its list, and its link is NULL.
    unsafe fn set_only(&mut self, pool: *mut ngx_pool_t, header: *mut ngx_table_elt_t) -> Result<(), Failure>;
}

impl HeaderLines for ngx_array_t {
    fn is_given(&self) -> bool {
        self.nelts > 0
    }

    unsafe fn set_only(&mut self, pool: *mut ngx_pool_t, header: *mut ngx_table_elt_t) -> Result<(), Failure> {
        // SAFETY: nginx makes the array when the first line comes; its elements are pointers to headers.
        unsafe {
            if self.elts.is_null() {
                self.elts = ngx_palloc(pool, size_of::<*mut ngx_table_elt_t>());
                if self.elts.is_null() {
                    return Err(Failure::NoMemory);
                }
                (self.size, self.nalloc, self.pool) = (size_of::<*mut ngx_table_elt_t>(), 1, pool);
            }
            self.elts.cast::<*mut ngx_table_elt_t>().write(header);
            self.nelts = 1;
        }
        Ok(())
    }
}

impl HeaderLines for *mut ngx_table_elt_t {
    fn is_given(&self) -> bool {
        !self.is_null()
    }

    unsafe fn set_only(&mut self, _pool: *mut ngx_pool_t, header: *mut ngx_table_elt_t) -> Result<(), Failure> {
        *self = header;
        Ok(())
    }
}

/// The name of a request's header.
pub struct HeaderName {
    text: &'static str,
    /// nginx's hash of a request header's name (`ngx_hash_key_lc()`); 0 if a module has removed the header.
    hash: ngx_uint_t,
}

impl HeaderName {
    pub const ACCEPT: HeaderName = HeaderName::new("Accept");
    pub const AUTHORIZATION: HeaderName = HeaderName::new("Authorization");
    pub const ACCEPT_ENCODING: HeaderName = HeaderName::new("Accept-Encoding");
    pub const CONNECTION: HeaderName = HeaderName::new("Connection");
    pub const COOKIE: HeaderName = HeaderName::new("Cookie");
    /// Sent in the answer to OPTIONS if the request has it: when the zone was made, in milliseconds of Unix time.
    /// Sent by the console's page: what other origins cannot send.
    pub const CONSOLE: HeaderName = HeaderName::new("X-Nginx-PushStream-Console");
    pub const EPOCH: HeaderName = HeaderName::new("X-Nginx-PushStream-Epoch");
    pub const EVENT_ID: HeaderName = HeaderName::new("Event-Id");
    pub const EVENT_TYPE: HeaderName = HeaderName::new("Event-Type");
    /// Sent with [`HeaderName::EPOCH`]: this location accepts an id only once.
    pub const IDEMPOTENT: HeaderName = HeaderName::new("X-Nginx-PushStream-Idempotent");
    pub const IF_MODIFIED_SINCE: HeaderName = HeaderName::new("If-Modified-Since");
    pub const IF_NONE_MATCH: HeaderName = HeaderName::new("If-None-Match");
    pub const LAST_EVENT_ID: HeaderName = HeaderName::new("Last-Event-Id");
    pub const MODE: HeaderName = HeaderName::new("X-Nginx-PushStream-Mode");
    pub const ORIGIN: HeaderName = HeaderName::new("Origin");
    pub const PREFER: HeaderName = HeaderName::new("Prefer");
    pub const UPGRADE: HeaderName = HeaderName::new("Upgrade");
    pub const USER_AGENT: HeaderName = HeaderName::new("User-Agent");
    pub const WEBSOCKET_EXTENSIONS: HeaderName = HeaderName::new("Sec-WebSocket-Extensions");
    pub const WEBSOCKET_KEY: HeaderName = HeaderName::new("Sec-WebSocket-Key");
    pub const WEBSOCKET_PROTOCOL: HeaderName = HeaderName::new("Sec-WebSocket-Protocol");
    pub const WEBSOCKET_VERSION: HeaderName = HeaderName::new("Sec-WebSocket-Version");

    const fn new(text: &'static str) -> HeaderName {
        let (mut hash, mut index): (ngx_uint_t, usize) = (0, 0);
        while index < text.len() {
            let byte = text.as_bytes()[index].to_ascii_lowercase();
            hash = hash.wrapping_mul(31).wrapping_add(byte as ngx_uint_t);
            index += 1;
        }
        HeaderName { text, hash }
    }

    pub const fn text(&self) -> &'static str {
        self.text
    }
}

/// A constant as nginx's string type; nginx does not write to it.
fn borrowed(bytes: &'static [u8]) -> ngx_str_t {
    ngx_str_t {
        len: bytes.len(),
        data: bytes.as_ptr().cast_mut(),
    }
}
