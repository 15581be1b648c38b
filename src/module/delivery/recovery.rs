//! Recovery after a panic while messages were handed out.
//!
//! It is unknown then which subscriber has got which message. A subscriber that silently misses a message is worse off
//! than one whose connection breaks: it reconnects and resumes. So all subscribers of this worker are cut off, and the
//! work begins anew.

use ngx::ffi::NGX_LOG_ALERT;
use ngx::ngx_log_error;

use super::ending::Ending;
use super::perform::end;
use super::state::{Delivery, PROCESS};
use super::subscriber::SubscriberId;
use crate::ffi::panic_guard;

/// Cuts all subscribers off. A panic in here ends the process: then the master starts another, and the others repair
/// the zone.
pub fn start_over() {
    panic_guard::guard(
        "recovery",
        || std::process::abort(),
        || {
            let everybody = PROCESS.with(Delivery::forget_work).unwrap_or_default();
            let log = ngx::log::ngx_cycle_log().as_ptr();
            ngx_log_error!(
                NGX_LOG_ALERT,
                log,
                "push stream: {} subscribers closed after a panic",
                everybody.len()
            );
            for id in everybody {
                end(id, Ending::Failed);
            }
        },
    );
}

impl Delivery {
    /// Drops the work in progress; returns all subscribers.
    fn forget_work(&mut self) -> Vec<SubscriberId> {
        self.inbox.forget();
        self.due.clear();
        for channel in self.registry.channels.values_mut() {
            channel.done = 0;
        }
        let slab = &mut self.registry.slab;
        (0..slab.end()).filter_map(|index| slab.id(index)).collect()
    }
}
