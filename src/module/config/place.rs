//! Where something stands in the configuration's files: what is only found out when all of it was read, is told with the place where
//! it was written.

use ngx::ffi::*;

/// A file and a line.
#[derive(Clone, Copy)]
pub struct Place {
    /// In the cycle's pool, with a NUL behind it.
    file: ngx_str_t,
    line: ngx_uint_t,
}

impl Place {
    /// Where nginx is reading now; None if that is no file.
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

    /// Runs `work`; what it logs with `cf` names this place.
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
