//! The worker as a process, against a stand-in for nginx that can fail in every way a server fails.

mod amqp;
mod broker_tls;
mod brokers;
mod command_line;
mod crash;
mod delivery;
mod doctor;
mod examples;
mod following;
mod intake;
mod nats;
mod operations;
mod parking;
mod queues;
mod support;
