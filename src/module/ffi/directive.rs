//! A directive while nginx reads it.

use std::ffi::{c_char, c_void};
use std::ptr;

use ngx::ffi::*;

use super::pool;

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

    /// For nginx's log macros.
    pub fn conf(&self) -> *mut ngx_conf_t {
        self.cf
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
}

/// A time in milliseconds as nginx writes it; None if it is none.
pub fn parse_time(word: &ngx_str_t) -> Option<u32> {
    let mut word = *word;
    // SAFETY: `word` is a valid string.
    let time = unsafe { ngx_parse_time(&mut word, 0) };
    u32::try_from(time).ok()
}
