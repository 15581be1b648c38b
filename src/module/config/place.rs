//! A place in the configuration files: errors found only after the whole configuration was read are logged with the
//! file and line of the directive.

use ngx::ffi::*;

use crate::ffi::directive::Conf;

/// A file and a line.
#[derive(Clone, Copy)]
pub struct Place {
    /// In the cycle's pool, NUL-terminated.
    file: ngx_str_t,
    line: ngx_uint_t,
}

impl Place {
    /// The place that nginx is reading; None if it is not in a file.
    pub fn of(conf: Conf<'_>) -> Option<Place> {
        let (file, line) = conf.position()?;
        Some(Place {
            file: *file,
            line: *line,
        })
    }

    /// Runs `work`; its log messages through `conf` name this place.
    pub fn during<R>(place: Option<Place>, conf: Conf<'_>, work: impl FnOnce() -> R) -> R {
        let Some(place) = place else {
            return work();
        };
        let Some(here) = Place::of(conf) else {
            return work();
        };
        place.enter(conf);
        let result = work();
        here.enter(conf);
        result
    }

    fn enter(self, conf: Conf<'_>) {
        if let Some((file, line)) = conf.position() {
            (*file, *line) = (self.file, self.line);
        }
    }
}
