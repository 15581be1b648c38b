//! What a server's stream consists of.

/// One item of a server's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    Message(Message<'a>),
    /// Pings, comments and blank lines.
    Comment,
    /// A ping: the pong must carry the same bytes.
    Ping(&'a [u8]),
    /// The server ends the stream.
    Close,
    /// Invalid data.
    Foreign(&'a [u8]),
}

/// A delivered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub id: Option<&'a [u8]>,
    pub data: &'a [u8],
}
