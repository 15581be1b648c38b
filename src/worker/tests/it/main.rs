//! The worker as a process, against a stand-in for nginx with every kind of server failure.

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
mod jwks;
mod nats;
mod operations;
mod parking;
mod queues;
mod support;
