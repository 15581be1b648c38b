//! This module's view of nginx's request.

use super::denial::{Denial, NO_MEMORY};
use crate::config::{Location, Main, Settings};
use crate::ffi::request::Failure;

pub use crate::ffi::request::{HeaderName, Request};

impl<'r> Request<'r> {
    /// This module's configuration of the request's location, or of the `if` block that it is in.
    pub fn location(self) -> &'r Location {
        // SAFETY: every location has an entry of this module, made by `Location`'s create function, and the
        // configuration outlives the request.
        unsafe { &*self.location_conf().cast::<Location>() }
    }

    /// This module's configuration of the http block.
    pub fn main(self) -> &'r Main {
        // SAFETY: as for `location`.
        unsafe { &*self.main_conf().cast::<Main>() }
    }

    pub fn settings(self) -> Result<&'r Settings, Denial> {
        self.main().settings.as_deref().ok_or(Denial::Unavailable)
    }
}

impl From<Failure> for Denial {
    fn from(failure: Failure) -> Denial {
        match failure {
            Failure::NoMemory => NO_MEMORY,
            Failure::Variables => Denial::Internal("cannot evaluate the variables of a directive"),
            Failure::Nginx(code) => Denial::Nginx(code),
        }
    }
}
