//! The queues for measurements of the whole way: filled as by their producers, and queried for completion.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use redis::Value;
use tokio::runtime::Runtime;

use crate::source::amqp::DEFAULT_PREFETCH;
use crate::test_servers::{RabbitMq, Redis};

/// Where the posts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    #[value(name = "redis_streams")]
    RedisStreams,
    Thoonk,
    Amqp,
}

/// A queue at a broker started for the measurement.
pub trait Queue {
    /// The source's part of the worker's configuration.
    fn source(&self) -> String;

    /// The broker's process.
    fn pid(&self) -> u32;

    /// Inserts posts, numbered from `first`.
    fn put(&mut self, first: u64, posts: &[String]) -> Result<(), String>;

    /// Number of unfinished posts.
    fn open(&mut self) -> Result<u64, String>;

    /// Throughput of consumers that only acknowledge, where it is of interest. They read and use up copies of the same
    /// messages.
    fn drain_bare(&mut self, _count: u64) -> Result<Option<Bare>, String> {
        Ok(None)
    }
}

/// Throughput of a bare consumer, in messages a second.
pub struct Bare {
    /// Each message acknowledged individually.
    pub one_by_one: f64,
    /// Half of the prefetched messages at a time, as the worker does it.
    pub in_groups: f64,
}

pub fn start(kind: SourceKind, fsync: &str) -> Result<Box<dyn Queue>, String> {
    let describe_error = |error: std::io::Error| error.to_string();
    Ok(match kind {
        SourceKind::Amqp => Box::new(Rabbit::start()?),
        SourceKind::RedisStreams => Box::new(Stream(Server::start(
            Redis::start(fsync, &[]).map_err(describe_error)?,
        )?)),
        SourceKind::Thoonk => Box::new(Jobs(Server::start(Redis::start(fsync, &[]).map_err(describe_error)?)?)),
    })
}

fn describe_error(error: redis::RedisError) -> String {
    format!("Redis: {error}")
}

struct Server {
    redis: Redis,
    connection: redis::Connection,
}

impl Server {
    fn start(redis: Redis) -> Result<Self, String> {
        let client = redis::Client::open(redis.url()).map_err(describe_error)?;
        let connection = client.get_connection().map_err(describe_error)?;
        Ok(Self { redis, connection })
    }
}

struct Stream(Server);

impl Queue for Stream {
    fn source(&self) -> String {
        let url = self.0.redis.url();
        format!("type = \"redis_streams\"\nurl = \"{url}\"\nstream = \"posts\"\ngroup = \"bench\"\nlease = \"10s\"")
    }

    fn pid(&self) -> u32 {
        self.0.redis.pid()
    }

    fn put(&mut self, _first: u64, posts: &[String]) -> Result<(), String> {
        let mut pipe = redis::pipe();
        for post in posts {
            pipe.cmd("XADD").arg("posts").arg("*").arg("body").arg(post).ignore();
        }
        pipe.query(&mut self.0.connection).map_err(describe_error)
    }

    fn open(&mut self) -> Result<u64, String> {
        // The worker creates the group.
        let groups: Vec<std::collections::HashMap<String, Value>> = redis::cmd("XINFO")
            .arg("GROUPS")
            .arg("posts")
            .query(&mut self.0.connection)
            .map_err(describe_error)?;
        let number = |key: &str| match groups.first().and_then(|group| group.get(key)) {
            Some(Value::Int(number)) => u64::try_from(*number).unwrap_or_default(),
            _ => 1,
        };
        Ok(number("lag") + number("pending"))
    }
}

struct Jobs(Server);

impl Queue for Jobs {
    fn source(&self) -> String {
        format!("type = \"thoonk\"\nurl = \"{}\"\nqueue = \"posts\"", self.0.redis.url())
    }

    fn pid(&self) -> u32 {
        self.0.redis.pid()
    }

    fn put(&mut self, first: u64, posts: &[String]) -> Result<(), String> {
        let now = crate::clock::Timestamp::now().0;
        let mut pipe = redis::pipe();
        for (id, post) in (first..).zip(posts) {
            pipe.cmd("MULTI").ignore();
            pipe.cmd("LPUSH").arg("feed.ids:posts").arg(id).ignore();
            pipe.cmd("INCR").arg("feed.publishes:posts").ignore();
            pipe.cmd("HSET").arg("feed.items:posts").arg(id).arg(post).ignore();
            pipe.cmd("ZADD").arg("feed.published:posts").arg(now).arg(id).ignore();
            pipe.cmd("EXEC").ignore();
        }
        pipe.query(&mut self.0.connection).map_err(describe_error)
    }

    fn open(&mut self) -> Result<u64, String> {
        let (put, done): (Option<u64>, Option<u64>) = redis::pipe()
            .get("feed.publishes:posts")
            .get("feed.finishes:posts")
            .query(&mut self.0.connection)
            .map_err(describe_error)?;
        Ok(put.unwrap_or_default().saturating_sub(done.unwrap_or_default()))
    }
}

/// The worker's queue, and those of the bare consumers.
const QUEUES: [&str; 3] = ["posts", ONE_BY_ONE, IN_GROUPS];
const ONE_BY_ONE: &str = "bare-one-by-one";
const IN_GROUPS: &str = "bare-in-groups";
/// Time for the broker to forward acknowledgements to a queue.
const PASSING_ON: Duration = Duration::from_secs(1);
/// Maximum outstanding confirms.
const UNCONFIRMED: usize = 1000;

struct Rabbit {
    broker: RabbitMq,
    runtime: Runtime,
    _connection: Connection,
    channel: Channel,
}

fn describe_amqp_error(error: lapin::Error) -> String {
    format!("RabbitMQ: {error}")
}

impl Rabbit {
    fn start() -> Result<Self, String> {
        let broker = RabbitMq::start("").map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let (connection, channel) = runtime
            .block_on(async {
                let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await?;
                let channel = connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                for queue in QUEUES {
                    let mut arguments = FieldTable::default();
                    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
                    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
                    let durable = QueueDeclareOptions {
                        durable: true,
                        ..QueueDeclareOptions::default()
                    };
                    channel.queue_declare(queue.into(), durable, arguments).await?;
                }
                Ok((connection, channel))
            })
            .map_err(describe_amqp_error)?;
        Ok(Self {
            broker,
            runtime,
            _connection: connection,
            channel,
        })
    }

    async fn fill(channel: &Channel, queue: &str, first: u64, posts: &[String]) -> Result<(), lapin::Error> {
        for (chunk, posts) in posts.chunks(UNCONFIRMED).enumerate() {
            let mut confirms = Vec::with_capacity(posts.len());
            for (id, post) in (first + (chunk * UNCONFIRMED) as u64..).zip(posts) {
                let properties = BasicProperties::default()
                    .with_delivery_mode(2)
                    .with_message_id(id.to_string().into());
                let options = BasicPublishOptions::default();
                confirms.push(
                    channel
                        .basic_publish("".into(), queue.into(), options, post.as_bytes(), properties)
                        .await?,
                );
            }
            for confirm in confirms {
                confirm.await?;
            }
        }
        Ok(())
    }

    fn waiting(&self, queue: &str) -> Result<u64, String> {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let declared = self
            .runtime
            .block_on(self.channel.queue_declare(queue.into(), passive, FieldTable::default()));
        Ok(u64::from(declared.map_err(describe_amqp_error)?.message_count()))
    }
}

impl Queue for Rabbit {
    fn source(&self) -> String {
        format!("type = \"amqp\"\nurl = \"{}\"\nqueue = \"posts\"", self.broker.url())
    }

    fn pid(&self) -> u32 {
        self.broker.pid()
    }

    /// Publishes to all queues: the bare consumers must find the same messages.
    fn put(&mut self, first: u64, posts: &[String]) -> Result<(), String> {
        for queue in QUEUES {
            self.runtime
                .block_on(Self::fill(&self.channel, queue, first, posts))
                .map_err(describe_amqp_error)?;
        }
        Ok(())
    }

    /// Messages at the worker do not count: they are finished when the worker has ended.
    fn open(&mut self) -> Result<u64, String> {
        self.waiting("posts")
    }

    fn drain_bare(&mut self, count: u64) -> Result<Option<Bare>, String> {
        Ok(Some(Bare {
            one_by_one: self.drain(ONE_BY_ONE, count, 1)?,
            in_groups: self.drain(IN_GROUPS, count, u64::from(DEFAULT_PREFETCH) / 2)?,
        }))
    }
}

impl Rabbit {
    /// Consumes `count` messages, acknowledges them in groups of `group`, and returns the rate per second.
    fn drain(&self, queue: &str, count: u64, group: u64) -> Result<f64, String> {
        use futures_util::StreamExt;

        let start = Instant::now();
        let elapsed = self
            .runtime
            .block_on(async {
                let connection = Connection::connect(&self.broker.url(), ConnectionProperties::default()).await?;
                let channel = connection.create_channel().await?;
                channel.basic_qos(DEFAULT_PREFETCH, BasicQosOptions::default()).await?;
                let options = BasicConsumeOptions::default();
                let mut consumer = channel
                    .basic_consume(queue.into(), "bench".into(), options, FieldTable::default())
                    .await?;
                for seen in 1..=count {
                    let Some(delivery) = consumer.next().await else { break };
                    let tag = delivery?.delivery_tag;
                    if seen % group == 0 || seen == count {
                        let multiple = group > 1;
                        channel.basic_ack(tag, BasicAckOptions { multiple }).await?;
                    }
                }
                let elapsed = start.elapsed().as_secs_f64();
                // Acknowledgements that the broker's channel process has not forwarded when it ends are lost.
                tokio::time::sleep(PASSING_ON).await;
                connection.close(200, "done".into()).await?;
                Ok(elapsed)
            })
            .map_err(describe_amqp_error)?;
        // The last acknowledgements are on their way through the queue's log.
        let patience = Instant::now() + Duration::from_secs(10);
        loop {
            match self.waiting(queue)? {
                0 => return Ok(count as f64 / elapsed),
                rest if Instant::now() > patience => {
                    return Err(format!("the bare consumer has left {rest} in {queue}"));
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}
