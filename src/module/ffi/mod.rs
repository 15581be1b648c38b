//! The boundary to C: keeps panics, lifetimes and thread rules of each side from harming the other.

pub mod body;
pub mod cell;
pub mod connection;
pub mod directive;
pub mod fault;
pub mod lookup;
pub mod openssl;
pub mod optional;
pub mod panic_guard;
pub mod parked;
pub mod pool;
pub mod received;
pub mod release;
pub mod request;
pub mod shared_memory;
pub mod stream;
pub mod variable;
