//! A place in the configuration files: errors found only after the whole configuration was read are logged with the
//! file and line of the directive.

use ngx::ffi::*;

/// A file and a line.
#[derive(Clone, Copy)]
pub struct Place {
    /// In the cycle's pool, NUL-terminated.
    file: ngx_str_t,
    line: ngx_uint_t,
}

impl Place {
    /// The place that nginx is reading; None if it is not in a file.
    ///
    /// # Safety
    /// `cf` is what nginx passed to a function of this module.
    pub unsafe fn of(cf: *mut ngx_conf_t) -> Option<Place> {
        // SAFETY: nginx has a structure for the file that it reads.
        let file = unsafe { (*cf).conf_file.as_ref()? };
        Some(Place {
            file: file.file.name,
            line: file.line,
        })
    }

    /// Runs `work`; its log messages through `cf` name this place.
    ///
    /// # Safety
    /// As for [`Place::of`].
    pub unsafe fn during<R>(place: Option<Place>, cf: *mut ngx_conf_t, work: impl FnOnce() -> R) -> R {
        // SAFETY: as in `of`; nothing else reads the configuration meanwhile.
        let file = unsafe { (*cf).conf_file.as_mut() };
        let (Some(place), Some(file)) = (place, file) else {
            return work();
        };
        let name = std::mem::replace(&mut file.file.name, place.file);
        let line = std::mem::replace(&mut file.line, place.line);
        let result = work();
        (file.file.name, file.line) = (name, line);
        result
    }
}
