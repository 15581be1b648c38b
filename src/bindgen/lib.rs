//! bindgen 0.73 under the number 0.72: see Cargo.toml.

pub use now::*;
