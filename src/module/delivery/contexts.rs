//! Which modules have a context in a request.

use ngx::ffi::*;

use crate::ffi::lookup;

/// Other modules that are known not to prevent detaching, by their index.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    pub chunked: Option<usize>,
    pub realip: Option<usize>,
}

impl Neighbours {
    /// Finds these modules in the current cycle.
    pub fn find() -> Neighbours {
        Neighbours {
            chunked: lookup::http_module_index(c"ngx_http_chunked_filter_module"),
            realip: lookup::http_module_index(c"ngx_http_realip_module"),
        }
    }
}

/// The set of modules that have a context in a request, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contexts(pub [u64; 8]);

impl Contexts {
    /// The contexts of the request so far.
    ///
    /// # Safety
    /// `r` is a valid request.
    pub unsafe fn of(r: *mut ngx_http_request_t) -> Contexts {
        // SAFETY: a request's context array has one entry per http module.
        let contexts = unsafe { std::slice::from_raw_parts((*r).ctx, ngx_http_max_module) };
        let mut words = [0; 8];
        // Few modules have one: test eight at a time first.
        for (group, contexts) in contexts.chunks(8).enumerate() {
            if contexts.iter().fold(0, |any, context| any | context.addr()) != 0 {
                let bits = contexts
                    .iter()
                    .enumerate()
                    .map(|(bit, context)| u64::from(!context.is_null()) << bit);
                words[group / 8] |= bits.fold(0, |all, bit| all | bit) << (group % 8 * 8);
            }
        }
        Contexts(words)
    }

    /// Is there a context here that is not in `known`?
    pub fn exceed(&self, known: &Contexts) -> bool {
        // Without a branch for each word: there rarely is one.
        self.0
            .iter()
            .zip(known.0)
            .fold(0, |more, (now, known)| more | now & !known)
            != 0
    }

    pub fn insert(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }
}
