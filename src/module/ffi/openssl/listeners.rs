//! The TLS contexts of nginx's listeners.

use std::ffi::c_void;

use ngx::ffi::*;

use super::library::learn_from;
use crate::ffi::directive::Conf;
use crate::ffi::{lookup, optional};

/// Lets the connections of each listener be taken over that has one of the servers in `wanted`: prepares the contexts of
/// all of its servers. A connection begins with the context of the default server, and goes on with another by its
/// server's name. To be called when all servers are read.
pub fn learn_from_listeners(conf: Conf<'_>, wanted: &[*mut *mut c_void]) -> Result<(), &'static str> {
    let Some(ssl_index) = optional::http_ssl_index() else {
        return Ok(());
    };
    // SAFETY: inside of the http block; the core module keeps arrays of these types, and a listener has servers.
    unsafe {
        let context = (*conf.raw()).ctx.cast::<ngx_http_conf_ctx_t>();
        let core = (*context).main_conf.add(lookup::core_index()).read();
        let Some(ports) = (*core.cast::<ngx_http_core_main_conf_t>()).ports.as_ref() else {
            return Ok(());
        };
        for port in elements::<ngx_http_conf_port_t>(ports) {
            for listener in elements::<ngx_http_conf_addr_t>(&port.addrs) {
                let servers = elements::<*mut ngx_http_core_srv_conf_t>(&listener.servers);
                let servers = servers.iter().map(|&server| (*(*server).ctx).srv_conf);
                if !servers.clone().any(|server| wanted.contains(&server)) {
                    continue;
                }
                for server in servers {
                    let ssl = server.add(ssl_index).read().cast::<ngx_http_ssl_srv_conf_t>();
                    if !(*ssl).ssl.ctx.is_null() {
                        learn_from((*ssl).ssl.ctx)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// # Safety
/// The array's elements are of this type.
unsafe fn elements<T>(array: &ngx_array_t) -> &[T] {
    if array.elts.is_null() {
        return &[];
    }
    // SAFETY: guaranteed by the caller.
    unsafe { std::slice::from_raw_parts(array.elts.cast::<T>(), array.nelts) }
}
