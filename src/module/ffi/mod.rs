//! The edge to C: what keeps a panic, a lifetime or a thread rule of one side from hurting the other.

pub mod body;
pub mod cell;
pub mod fault;
pub mod lookup;
pub mod optional;
pub mod panic_guard;
pub mod pool;
pub mod tcp;
