//! The worker as a process, against a stand-in for nginx that can fail in every way a server fails.

mod brokers;
mod command_line;
mod crash;
mod delivery;
mod following;
mod intake;
mod queues;
mod support;
