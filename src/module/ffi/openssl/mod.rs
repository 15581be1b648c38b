//! OpenSSL, as far as it is needed to take a connection over from it (`push_stream_detach_tls`).

#[cfg(ngx_feature = "ssl")]
mod library;
#[cfg(ngx_feature = "ssl")]
mod listeners;

#[cfg(ngx_feature = "ssl")]
pub use library::{check, take};
#[cfg(ngx_feature = "ssl")]
pub use listeners::learn_from_listeners;

/// Why a connection stays with OpenSSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// For good: not TLS 1.3 with one of the suites, early data, or encryption by the kernel.
    Protocol,
    /// For good: its secrets were not learned.
    Unknown,
    /// For now: half a record is read or written, a KeyUpdate is due, or the handshake is not over.
    Busy,
    /// For now: the records do not account for all bytes that were read or written.
    Unaccounted,
}

impl Hold {
    /// May it be gone later?
    pub fn is_temporary(self) -> bool {
        matches!(self, Hold::Busy | Hold::Unaccounted)
    }
}

/// The module was built for an nginx without TLS.
#[cfg(not(ngx_feature = "ssl"))]
pub fn check() -> Result<(), &'static str> {
    Err("this nginx has no TLS")
}

/// The module was built for an nginx without TLS: the directive was refused.
#[cfg(not(ngx_feature = "ssl"))]
pub fn learn_from_listeners(
    _conf: super::directive::Conf<'_>,
    _wanted: &[*mut *mut std::ffi::c_void],
) -> Result<(), &'static str> {
    check()
}

/// The module was built for an nginx without TLS.
#[cfg(not(ngx_feature = "ssl"))]
pub fn take(_connection: super::connection::Connection<'_>) -> Result<push_stream_core::wire::tls::Session, Hold> {
    Err(Hold::Unknown)
}
