//! The nginx module: module table and process lifecycle.
