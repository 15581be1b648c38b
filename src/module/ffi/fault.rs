//! Panics on demand, for tests only: a build with the feature `fault-points` panics at the point that a file names.
//!
//! The file is `fault` in nginx's prefix directory. It holds the name of a point, or `store` and a number: then the
//! next mutation of the store panics after that many writes. The process that acts on it removes it first, so that it
//! happens once.

/// Panics if this point is named in the file. A no-op in a release.
#[inline(always)]
pub fn point(_name: &str) {
    #[cfg(feature = "fault-points")]
    if armed::take(_name).is_some() {
        panic!("injected fault: {_name}");
    }
}

/// Runs `work` on the store, which may panic inside a mutation.
#[inline(always)]
pub fn in_store<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(feature = "fault-points")]
    let _armed = armed::Store::arm();
    work()
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    use push_stream_core::store::fault_injection;

    fn file() -> PathBuf {
        // SAFETY: there is a cycle whenever nginx calls the module, and its prefix is a path.
        let prefix = unsafe { (*ngx::ffi::ngx_cycle).prefix.as_bytes() };
        Path::new(OsStr::from_bytes(prefix)).join("fault")
    }

    /// The text after the name in the file, if the file names this point and no other process has taken it.
    pub fn take(name: &str) -> Option<String> {
        let file = file();
        let text = fs::read_to_string(&file).ok()?;
        let argument = text.trim_end().strip_prefix(name)?.to_string();
        let asked = argument.is_empty() || argument.starts_with(' ');
        (asked && fs::remove_file(&file).is_ok()).then(|| argument.trim().to_string())
    }

    /// While it lives, the store panics after that many writes.
    pub struct Store(u64);

    impl Store {
        pub fn arm() -> Option<Store> {
            let writes = take("store")?.parse().unwrap_or(0);
            fault_injection::arm_panic(writes);
            Some(Store(writes))
        }
    }

    impl Drop for Store {
        fn drop(&mut self) {
            if fault_injection::disarm() {
                // There were fewer writes: try again with the next work on the store.
                let _ = fs::write(file(), format!("store {}", self.0));
            }
        }
    }
}
