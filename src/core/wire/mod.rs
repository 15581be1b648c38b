//! Bytes in, bytes out: everything that is a format.

pub mod channel_path;
pub mod eventsource;
pub mod http_date;
pub mod percent;
pub mod position;
pub mod statistics;
pub mod template;
