//! *Learning*: two callbacks of every `SSL_CTX` of a listener that has such a location. The key log callback tells the
//! traffic secrets of a connection, the message callback its records. What is learned belongs to the connection's pool;
//! the `SSL` refers to it.
//!
//! *Taking*: [`take`] gives the secrets and record numbers to a [`Session`], and frees the `SSL`. It holds back unless it
//! is certain that OpenSSL is between two records in both directions.
//!
//! All functions are looked up at run time: the module also loads into an nginx without TLS, or with another library.

use std::ffi::{CStr, c_char, c_int, c_long, c_uchar, c_uint, c_ulong, c_void};
use std::ptr;
use std::sync::OnceLock;

use ngx::ffi::*;
use push_stream_core::wire::tls::{Half, Secret, Session, Suite};
use zeroize::Zeroizing;

use super::Hold;
use crate::ffi::connection::Connection;
use crate::ffi::optional::{self, Symbol};
use crate::ffi::{panic_guard, pool};

/// Declares the functions, and checks their types against those in OpenSSL's headers.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        #[allow(non_snake_case)]
        struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        $(const _: unsafe extern "C" fn($($argument),*) $(-> $result)? = ngx::ffi::$name;)*

        impl Functions {
            fn load() -> Result<Functions, String> {
                Ok(Functions {
                    $($name: {
                        static SYMBOL: Symbol = Symbol::new(
                            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                                Ok(name) => name,
                                Err(_) => panic!(),
                            },
                        );
                        let address = SYMBOL
                            .address()
                            .ok_or(concat!("this nginx has no ", stringify!($name), "()"))?;
                        // SAFETY: the symbol is OpenSSL's function of this name, with the type that its header gives.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address)
                        }
                    },)*
                })
            }
        }
    };
}

type MessageCallback = Option<unsafe extern "C" fn(c_int, c_int, c_int, *const c_void, usize, *mut SSL, *mut c_void)>;

functions! {
    OpenSSL_version_num: fn() -> c_ulong;
    CRYPTO_get_ex_new_index: fn(c_int, c_long, *mut c_void, CRYPTO_EX_new, CRYPTO_EX_dup, CRYPTO_EX_free) -> c_int;
    SSL_CTX_set_keylog_callback: fn(*mut SSL_CTX, SSL_CTX_keylog_cb_func);
    SSL_CTX_get_keylog_callback: fn(*const SSL_CTX) -> SSL_CTX_keylog_cb_func;
    SSL_CTX_set_msg_callback: fn(*mut SSL_CTX, MessageCallback);
    SSL_CTX_set_ex_data: fn(*mut SSL_CTX, c_int, *mut c_void) -> c_int;
    SSL_CTX_get_ex_data: fn(*const SSL_CTX, c_int) -> *mut c_void;
    SSL_get_SSL_CTX: fn(*const SSL) -> *mut SSL_CTX;
    SSL_set_ex_data: fn(*mut SSL, c_int, *mut c_void) -> c_int;
    SSL_get_ex_data: fn(*const SSL, c_int) -> *mut c_void;
    SSL_version: fn(*const SSL) -> c_int;
    SSL_get_current_cipher: fn(*const SSL) -> *const SSL_CIPHER;
    SSL_CIPHER_get_protocol_id: fn(*const SSL_CIPHER) -> u16;
    SSL_get0_alpn_selected: fn(*const SSL, *mut *const c_uchar, *mut c_uint);
    SSL_get_early_data_status: fn(*const SSL) -> c_int;
    SSL_get_options: fn(*const SSL) -> u64;
    SSL_is_init_finished: fn(*const SSL) -> c_int;
    SSL_has_pending: fn(*const SSL) -> c_int;
    SSL_get_key_update_type: fn(*const SSL) -> c_int;
    SSL_get_shutdown: fn(*const SSL) -> c_int;
    SSL_get_rbio: fn(*const SSL) -> *mut BIO;
    SSL_get_wbio: fn(*const SSL) -> *mut BIO;
    BIO_number_read: fn(*mut BIO) -> u64;
    BIO_number_written: fn(*mut BIO) -> u64;
}

/// The library, with the places where its objects refer to this module's.
struct Library {
    functions: Functions,
    /// In an `SSL`: what is learned; see [`Place`].
    place: c_int,
    /// In an `SSL_CTX`: the key log callback that was there before.
    previous: c_int,
}

/// The oldest library that is used: 3.0.0.
const OLDEST: c_ulong = 0x3000_0000;

/// The library that this nginx uses, or the reason why it is of no use.
fn library() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(Library::load).as_ref().map_err(String::as_str)
}

/// Can connections be taken over from the library that this nginx uses? The reason if not.
pub fn check() -> Result<(), &'static str> {
    library().map(|_| ())
}

impl Library {
    fn load() -> Result<Library, String> {
        if optional::ssl_connection_index().is_none() {
            return Err("this nginx has no TLS".into());
        }
        let functions = Functions::load()?;
        // SAFETY: has no conditions.
        if unsafe { (functions.OpenSSL_version_num)() } < OLDEST {
            return Err("this nginx has no OpenSSL 3.0 or later".into());
        }
        // No callback: the objects refer to what others own. One in a module that is replaced would outlive it.
        let index = |class: u32| {
            // SAFETY: the class is one of OpenSSL's.
            let index =
                unsafe { (functions.CRYPTO_get_ex_new_index)(class as c_int, 0, ptr::null_mut(), None, None, None) };
            if index < 0 {
                Err("OpenSSL has no memory".to_string())
            } else {
                Ok(index)
            }
        };
        let (place, previous) = (index(CRYPTO_EX_INDEX_SSL)?, index(CRYPTO_EX_INDEX_SSL_CTX)?);
        Ok(Library {
            functions,
            place,
            previous,
        })
    }
}

/// Lets connections with this context be taken over: learns their secrets and counts their records.
///
/// # Safety
/// `context` is valid, and has no message callback.
pub unsafe fn learn_from(context: *mut SSL_CTX) -> Result<(), &'static str> {
    let Library {
        functions, previous, ..
    } = library()?;
    // SAFETY: the context is valid.
    unsafe {
        let there = (functions.SSL_CTX_get_keylog_callback)(context);
        if there.is_some_and(|there| there as usize == ON_KEY as usize) {
            return Ok(());
        }
        // nginx's QUIC sets one.
        let there = there.map_or(ptr::null_mut(), |there| there as *mut c_void);
        if (functions.SSL_CTX_set_ex_data)(context, *previous, there) != 1 {
            return Err("OpenSSL has no memory");
        }
        (functions.SSL_CTX_set_keylog_callback)(context, Some(ON_KEY));
        (functions.SSL_CTX_set_msg_callback)(context, Some(on_message));
    }
    Ok(())
}

/// One address of the callback, for comparisons.
static ON_KEY: unsafe extern "C" fn(*const SSL, *const c_char) = on_key;

/// What is learned of one connection.
struct Learned {
    write: Option<Half>,
    read: Option<Half>,
    bytes: Bytes,
}

/// Bytes of all records since the connection began.
#[derive(Clone, Copy, Default)]
struct Bytes {
    written: u64,
    read: u64,
}

/// What an `SSL` refers to. Until its secrets are known that is a number and costs no memory: the bytes so far, 31 bits
/// for each direction, above a bit that no pointer has.
enum Place {
    Counting(Bytes),
    Learned(*mut Learned),
}

const COUNTING: usize = 1;
const MASK: usize = (1 << 31) - 1;

impl Place {
    fn of(pointer: *mut c_void) -> Place {
        let number = pointer as usize;
        if number & COUNTING == 0 && number != 0 {
            return Place::Learned(pointer.cast());
        }
        Place::Counting(Bytes {
            written: (number >> 1 & MASK) as u64,
            read: (number >> 32 & MASK) as u64,
        })
    }

    fn to_pointer(&self) -> *mut c_void {
        match self {
            Place::Learned(learned) => learned.cast(),
            // Too many bytes stay too many, and no connection with them is taken.
            Place::Counting(bytes) => {
                let (written, read) = ((bytes.written as usize).min(MASK), (bytes.read as usize).min(MASK));
                (COUNTING | written << 1 | read << 32) as *mut c_void
            }
        }
    }
}

impl Bytes {
    fn add(&mut self, written: bool, bytes: u64) {
        *(if written { &mut self.written } else { &mut self.read }) += bytes;
    }
}

/// The message callback: OpenSSL has read or written a record's header or a message.
unsafe extern "C" fn on_message(
    written: c_int,
    _version: c_int,
    kind: c_int,
    message: *const c_void,
    len: usize,
    ssl: *mut SSL,
    _argument: *mut c_void,
) {
    panic_guard::event("message of TLS", || {
        let Ok(Library { functions, place, .. }) = library() else {
            return;
        };
        let is_header = kind == SSL3_RT_HEADER as c_int;
        if message.is_null() || !is_header && kind != SSL3_RT_HANDSHAKE as c_int {
            return;
        }
        // SAFETY: OpenSSL passes a valid `SSL` and as many bytes as it says; what its place refers to lives as long as
        // the connection.
        unsafe {
            let message = std::slice::from_raw_parts(message.cast::<u8>(), len);
            let mut at = Place::of((functions.SSL_get_ex_data)(ssl, *place));
            let written = written != 0;
            if let (true, &[kind, _, _, high, low, ..]) = (is_header, message) {
                let bytes = message.len().min(5) as u64 + u64::from(u16::from_be_bytes([high, low]));
                match &mut at {
                    Place::Counting(counted) => {
                        counted.add(written, bytes);
                        (functions.SSL_set_ex_data)(ssl, *place, at.to_pointer());
                    }
                    Place::Learned(learned) => (**learned).note_record(written, kind, bytes),
                }
            } else if let (false, Place::Learned(learned), [KEY_UPDATE, ..]) = (is_header, at, message) {
                (*learned).note_update(written);
            }
        }
    });
}

/// The type of a KeyUpdate among handshake messages (RFC 8446 §4).
const KEY_UPDATE: u8 = 24;

impl Learned {
    fn half(&mut self, written: bool) -> &mut Option<Half> {
        if written { &mut self.write } else { &mut self.read }
    }

    fn note_record(&mut self, written: bool, kind: u8, bytes: u64) {
        self.bytes.add(written, bytes);
        if let (SSL3_RT_APPLICATION_DATA, Some(half)) = (u32::from(kind), self.half(written)) {
            half.number += 1;
        }
    }

    /// The direction has other keys from here on. OpenSSL does not tell them.
    fn note_update(&mut self, written: bool) {
        let half = self.half(written);
        if half.as_mut().and_then(Half::update).is_none() {
            *half = None;
        }
    }
}

/// The key log callback: a line with a label, the client's random and a secret.
unsafe extern "C" fn on_key(ssl: *const SSL, line: *const c_char) {
    panic_guard::event("secret of TLS", || {
        // SAFETY: OpenSSL passes a valid `SSL` and a C string.
        unsafe {
            if let Ok(library) = library() {
                library.learn(ssl.cast_mut(), CStr::from_ptr(line).to_bytes());
            }
        }
    });
    let Ok(Library {
        functions, previous, ..
    }) = library()
    else {
        return;
    };
    // SAFETY: what the context refers to is a callback of this type, which was there before.
    unsafe {
        let there = (functions.SSL_CTX_get_ex_data)((functions.SSL_get_SSL_CTX)(ssl), *previous);
        let there = std::mem::transmute::<*mut c_void, SSL_CTX_keylog_cb_func>(there);
        if let Some(callback) = there {
            callback(ssl, line);
        }
    }
}

impl Library {
    unsafe fn learn(&self, ssl: *mut SSL, line: &[u8]) {
        let mut words = line.split(|&byte| byte == b' ');
        let (label, secret) = (words.next(), words.nth(1));
        let (Some(label), Some(secret)) = (label, secret) else {
            return;
        };
        let written = match label {
            b"SERVER_TRAFFIC_SECRET_0" => true,
            b"CLIENT_TRAFFIC_SECRET_0" => false,
            _ => return,
        };
        // SAFETY: the `SSL` is valid, and what its place refers to lives as long as the connection.
        unsafe {
            let functions = &self.functions;
            let Some(half) = self.half(ssl, secret) else {
                return;
            };
            let learned = match Place::of((functions.SSL_get_ex_data)(ssl, self.place)) {
                Place::Learned(learned) => learned,
                Place::Counting(_) if !written || self.is_http2(ssl) => return,
                Place::Counting(bytes) => {
                    let Some(learned) = self.place_for(ssl, bytes) else {
                        return;
                    };
                    learned
                }
            };
            *(*learned).half(written) = Some(half);
        }
    }

    /// The secret, of which no record has been counted.
    unsafe fn half(&self, ssl: *const SSL, secret: &[u8]) -> Option<Half> {
        // SAFETY: the `SSL` is valid.
        let suite = unsafe { self.suite(ssl) }?;
        let mut bytes = Zeroizing::new([0u8; 64]);
        let (pairs, rest) = secret.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() > bytes.len() {
            return None;
        }
        let digit = |digit: u8| char::from(digit).to_digit(16);
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = (digit(high)? << 4 | digit(low)?) as u8;
        }
        Some(Half {
            secret: Secret::new(suite, &bytes[..pairs.len()])?,
            number: 0,
        })
    }

    unsafe fn suite(&self, ssl: *const SSL) -> Option<Suite> {
        // SAFETY: the `SSL` is valid; it has a cipher from the handshake on.
        unsafe {
            let cipher = (self.functions.SSL_get_current_cipher)(ssl);
            if cipher.is_null() {
                return None;
            }
            Suite::from_number((self.functions.SSL_CIPHER_get_protocol_id)(cipher))
        }
    }

    /// Streams of HTTP/2 keep their connection: nothing of it needs to be learned.
    unsafe fn is_http2(&self, ssl: *const SSL) -> bool {
        let (mut name, mut len): (*const c_uchar, c_uint) = (ptr::null(), 0);
        // SAFETY: the `SSL` is valid, and so are the places for the answer, which lives as long as the `SSL`.
        unsafe {
            (self.functions.SSL_get0_alpn_selected)(ssl, &mut name, &mut len);
            !name.is_null() && std::slice::from_raw_parts(name, len as usize) == b"h2"
        }
    }

    /// Makes room for what is learned, in the connection's pool.
    unsafe fn place_for(&self, ssl: *mut SSL, bytes: Bytes) -> Option<*mut Learned> {
        // SAFETY: nginx has put the connection of each of its `SSL`s into its own place.
        unsafe {
            let index = optional::ssl_connection_index()?;
            let connection = (self.functions.SSL_get_ex_data)(ssl, index).cast::<ngx_connection_t>();
            let pool = connection.as_ref()?.pool;
            if pool.is_null() {
                return None;
            }
            let learned = Learned {
                write: None,
                read: None,
                bytes,
            };
            let learned = pool::place(pool, learned)?.as_ptr();
            (self.functions.SSL_set_ex_data)(ssl, self.place, Place::Learned(learned).to_pointer());
            Some(learned)
        }
    }
}

/// Takes a connection over: frees its `SSL`, and returns the state of both directions. nginx's connection is as one
/// without TLS afterwards. None of its handlers may be running.
pub fn take(connection: Connection<'_>) -> Result<Session, Hold> {
    let library = library().map_err(|_| Hold::Unknown)?;
    if !connection.has_tls() {
        return Err(Hold::Unknown);
    }
    let raw = connection.raw();
    // SAFETY: the connection is open, and its `SSL` is valid until it is freed here.
    unsafe {
        let ssl = (*(*raw).ssl).connection;
        let learned = library.examine(raw, ssl)?;
        let learned = &mut *learned;
        let (Some(write), Some(read)) = (learned.write.take(), learned.read.take()) else {
            return Err(Hold::Unknown);
        };
        let session = Session::new(write, read).ok_or(Hold::Unknown)?;
        // Neither sends close_notify nor waits for it, and leaves the session in the cache.
        (*(*raw).ssl).set_no_wait_shutdown(1);
        (*(*raw).ssl).set_no_send_shutdown(1);
        optional::ssl_shutdown(connection, not_later);
        if connection.has_tls() {
            // Never seen: the secrets are gone, and nothing can be sent any more.
            connection.set_error();
            return Err(Hold::Unknown);
        }
        connection.use_socket_directly();
        Ok(session)
    }
}

/// Does OpenSSL wait for the first byte of a record? A linker may have left the function out of an nginx with a library of its
/// own; the count of bytes tells it, too.
unsafe fn waits_for_header(ssl: *const SSL) -> bool {
    type Function = unsafe extern "C" fn(*const SSL) -> *const c_char;
    const _: Function = ngx::ffi::SSL_rstate_string;
    static STATE: Symbol = Symbol::new(c"SSL_rstate_string");
    // SAFETY: the function has this type, and returns a constant text; the `SSL` is valid.
    STATE.address().is_none_or(
        |state| unsafe { CStr::from_ptr(std::mem::transmute::<*mut c_void, Function>(state)(ssl)) } == c"RH",
    )
}

/// What nginx would call after a shutdown that has to wait; this one does not.
unsafe extern "C" fn not_later(_connection: *mut ngx_connection_t) {}

impl Library {
    /// Is the connection between two records in both directions, and is all known of it?
    unsafe fn examine(&self, connection: *mut ngx_connection_t, ssl: *mut SSL) -> Result<*mut Learned, Hold> {
        const EARLY_DATA_ACCEPTED: c_int = 2;
        const ENABLE_KTLS: u64 = 1 << 3;
        const NO_KEY_UPDATE: c_int = -1;
        let functions = &self.functions;
        // SAFETY: as for `take`.
        unsafe {
            let state = &*(*connection).ssl;
            if (functions.SSL_version)(ssl) != TLS1_3_VERSION as c_int
                || self.suite(ssl).is_none()
                || (functions.SSL_get_early_data_status)(ssl) == EARLY_DATA_ACCEPTED
                || (functions.SSL_get_options)(ssl) & ENABLE_KTLS != 0
            {
                return Err(Hold::Protocol);
            }
            let Place::Learned(learned) = Place::of((functions.SSL_get_ex_data)(ssl, self.place)) else {
                return Err(Hold::Unknown);
            };
            if (*learned).write.is_none() {
                return Err(Hold::Unknown);
            }
            let busy = (*connection).buffered() != 0
                || state.saved_read_handler.is_some()
                || state.saved_write_handler.is_some()
                || !state.ocsp.is_null()
                || state.in_early() != 0
                || (functions.SSL_is_init_finished)(ssl) == 0
                || !waits_for_header(ssl)
                || (functions.SSL_has_pending)(ssl) != 0
                || (functions.SSL_get_key_update_type)(ssl) != NO_KEY_UPDATE
                || (functions.SSL_get_shutdown)(ssl) != 0
                || (*learned).read.is_none();
            if busy {
                return Err(Hold::Busy);
            }
            let Bytes { written, read } = (*learned).bytes;
            if (functions.BIO_number_written)((functions.SSL_get_wbio)(ssl)) != written
                || (functions.BIO_number_read)((functions.SSL_get_rbio)(ssl)) != read
            {
                return Err(Hold::Unaccounted);
            }
            Ok(learned)
        }
    }
}
