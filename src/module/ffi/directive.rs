//! The configuration while nginx reads it, and one directive.

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use ngx::ffi::*;

use super::{lookup, pool};

/// The configuration that nginx reads, at some level of the http block.
#[derive(Clone, Copy)]
pub struct Conf<'c> {
    raw: *mut ngx_conf_t,
    life: PhantomData<&'c ()>,
}

impl<'c> Conf<'c> {
    /// # Safety
    /// nginx passed it to a function of this module, during `'c`.
    pub unsafe fn new(raw: *mut ngx_conf_t) -> Conf<'c> {
        Conf { raw, life: PhantomData }
    }

    /// For nginx's log macros.
    pub fn raw(self) -> *mut ngx_conf_t {
        self.raw
    }

    /// The cycle that it is for, which outlives what is made for it.
    pub fn cycle(self) -> *mut ngx_cycle_t {
        // SAFETY: valid during `'c`.
        unsafe { (*self.raw).cycle }
    }

    /// The cycle before that one; NULL if there is none.
    pub fn old_cycle(self) -> *mut ngx_cycle_t {
        // SAFETY: as above.
        unsafe { (*self.cycle()).old_cycle }
    }

    /// Name and line of the file that nginx is in, to read and to change; None if it is in none.
    pub fn position(self) -> Option<(&'c mut ngx_str_t, &'c mut ngx_uint_t)> {
        // SAFETY: nginx has a structure for the file; nothing else refers to it during a call of this module.
        let file = unsafe { (*self.raw).conf_file.as_mut() }?;
        Some((&mut file.file.name, &mut file.line))
    }

    fn context(self) -> *mut ngx_http_conf_ctx_t {
        // SAFETY: inside the http block the context is of this type.
        unsafe { (*self.raw).ctx.cast() }
    }

    /// The configurations of all modules for the server being read or merged: they name it.
    pub fn server(self) -> *mut *mut c_void {
        // SAFETY: as above.
        unsafe { (*self.context()).srv_conf }
    }

    /// What this module has made for the http block.
    pub fn main_conf(self) -> *mut c_void {
        // SAFETY: the array has an entry per http module.
        unsafe { (*self.context()).main_conf.add(lookup::own_index()).read() }
    }

    /// The core module's configuration of the location.
    pub fn core_location(self) -> &'c mut ngx_http_core_loc_conf_t {
        // SAFETY: as above; the core module fills its entry at every level, and callers use it at once.
        unsafe { &mut *(*self.context()).loc_conf.add(lookup::core_index()).read().cast() }
    }

    /// The core module's configuration of the server.
    pub fn core_server(self) -> &'c ngx_http_core_srv_conf_t {
        // SAFETY: as above.
        unsafe { &*(*self.context()).srv_conf.add(lookup::core_index()).read().cast() }
    }

    /// Moves a value to where it lives as long as the configuration; NULL without memory.
    pub fn place<T>(self, value: T) -> *mut c_void {
        // SAFETY: the pool lives as long as the cycle.
        unsafe { pool::place((*self.raw).pool, value) }.map_or(ptr::null_mut(), |place| place.as_ptr().cast())
    }

    /// Compiles a regular expression; or what is wrong with it, None without memory.
    pub fn compile(self, pattern: &[u8]) -> Result<NonNull<ngx_regex_t>, Option<String>> {
        let mut error = [0u8; NGX_MAX_CONF_ERRSTR as usize];
        // SAFETY: the structure is plain data; the pattern is copied with a NUL behind it, as the compiler wants it.
        unsafe {
            let terminated = [pattern, b"\0"].concat();
            let copy = pool::copy((*self.raw).pool, &terminated).ok_or(None)?;
            let mut request: ngx_regex_compile_t = std::mem::zeroed();
            request.pattern = ngx_str_t {
                len: pattern.len(),
                data: copy.as_ptr(),
            };
            request.pool = (*self.raw).pool;
            request.err = ngx_str_t {
                len: error.len(),
                data: error.as_mut_ptr(),
            };
            if ngx_regex_compile(&mut request) != NGX_OK as ngx_int_t {
                return Err(Some(request.err.to_string()));
            }
            NonNull::new(request.regex).ok_or(None)
        }
    }
}

/// What nginx passes to a setter: the directive, and the configuration of its level.
pub struct Directive<'c, T> {
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    pub level: &'c mut T,
}

/// One of nginx's own setters.
type Slot = unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

impl<'c, T> Directive<'c, T> {
    /// # Safety
    /// These are a setter's arguments, valid during `'c`, and `T` is what this module made for the directive's level.
    pub unsafe fn new(cf: *mut ngx_conf_t, command: *mut ngx_command_t, conf: *mut c_void) -> Directive<'c, T> {
        Directive {
            cf,
            command,
            // SAFETY: guaranteed by the caller; nobody else has it during the call.
            level: unsafe { &mut *conf.cast::<T>() },
        }
    }

    pub fn conf(&self) -> Conf<'c> {
        // SAFETY: nginx passed it to the setter.
        unsafe { Conf::new(self.cf) }
    }

    /// Its words, its name first.
    pub fn words(&self) -> &'c [ngx_str_t] {
        // SAFETY: nginx passes the words as an array of strings.
        unsafe { (*(*self.cf).args).as_slice() }
    }

    /// The offset of its field.
    pub fn offset(&self) -> usize {
        // SAFETY: nginx passes the line of this module's table.
        unsafe { (*self.command).offset }
    }

    fn slot(&mut self, slot: Slot) -> *mut c_char {
        // SAFETY: the table has nginx's setter with a field of its type.
        unsafe { slot(self.cf, self.command, ptr::from_mut(self.level).cast()) }
    }

    /// Sets its field as `ngx_conf_set_flag_slot`; returns nginx's verdict.
    pub fn set_flag(&mut self) -> *mut c_char {
        self.slot(ngx_conf_set_flag_slot)
    }

    /// Sets its field as `ngx_conf_set_enum_slot`.
    pub fn set_enum(&mut self) -> *mut c_char {
        self.slot(ngx_conf_set_enum_slot)
    }

    /// Sets its field as `ngx_conf_set_num_slot`.
    pub fn set_number(&mut self) -> *mut c_char {
        self.slot(ngx_conf_set_num_slot)
    }

    /// Sets its field as `ngx_conf_set_sec_slot`.
    pub fn set_seconds(&mut self) -> *mut c_char {
        self.slot(ngx_conf_set_sec_slot)
    }

    /// Sets its field as `ngx_conf_set_str_slot`.
    pub fn set_text(&mut self) -> *mut c_char {
        self.slot(ngx_conf_set_str_slot)
    }

    /// Copies a text to where it lives as long as the configuration.
    pub fn keep(&self, text: &[u8]) -> Option<ngx_str_t> {
        // SAFETY: the pool lives as long as the configuration.
        let copy = unsafe { pool::copy((*self.cf).pool, text) }?;
        Some(ngx_str_t {
            len: text.len(),
            data: copy.as_ptr(),
        })
    }

    /// A file that is opened with the cycle's others, and opened again when nginx gets USR1. NULL if there is no memory.
    pub fn open_file(&self, name: &ngx_str_t) -> *mut ngx_open_file_t {
        let mut name = *name;
        // SAFETY: the cycle is being made, and the name lives as long as it.
        unsafe { ngx_conf_open_file((*self.cf).cycle, &mut name) }
    }

    /// Compiles a word with variables; None if that was refused and logged.
    pub fn compile(&self, word: &ngx_str_t) -> Option<*mut ngx_http_complex_value_t> {
        let mut text = *word;
        // SAFETY: the directive is being read; the value and its parts are in the configuration's pool.
        unsafe {
            let size = size_of::<ngx_http_complex_value_t>();
            let value = ngx_pcalloc((*self.cf).pool, size).cast::<ngx_http_complex_value_t>();
            if value.is_null() {
                return None;
            }
            let mut compilation: ngx_http_compile_complex_value_t = std::mem::zeroed();
            (compilation.cf, compilation.value, compilation.complex_value) = (self.cf, &raw mut text, value);
            (ngx_http_compile_complex_value(&raw mut compilation) == NGX_OK as ngx_int_t).then_some(value)
        }
    }

    /// A file's name, relative to the directory that `nginx.conf` is in. None if there is no memory.
    pub fn full_name(&self, word: &ngx_str_t) -> Option<Box<[u8]>> {
        let mut name = *word;
        // SAFETY: the cycle is being made.
        let code = unsafe { ngx_conf_full_name((*self.cf).cycle, &raw mut name, 1) };
        (code == NGX_OK as ngx_int_t).then(|| name.as_bytes().into())
    }
}

/// A time in seconds as nginx writes it; None if it is none.
pub fn parse_seconds(word: &ngx_str_t) -> Option<u64> {
    let mut word = *word;
    // SAFETY: `word` is a valid string.
    let time = unsafe { ngx_parse_time(&mut word, 1) };
    u64::try_from(time).ok()
}

/// A time in milliseconds as nginx writes it; None if it is none.
pub fn parse_time(word: &ngx_str_t) -> Option<u32> {
    let mut word = *word;
    // SAFETY: `word` is a valid string.
    let time = unsafe { ngx_parse_time(&mut word, 0) };
    u32::try_from(time).ok()
}
