//! A request's body, once nginx has read it.

use std::borrow::Cow;

use push_stream_core::store::{Draft, Worker};

use super::denial::Denial;
use super::request::Request;
use crate::config::Settings;
use crate::ffi::received::{Piece, Received};

const UNREADABLE: Denial = Denial::Internal("cannot read the request body from its temporary file");

/// A request's body, in memory or in a file.
pub struct Body {
    received: Received,
    len: usize,
}

impl Body {
    /// The body of a request, once nginx has read it.
    pub fn of(r: Request<'_>) -> Body {
        // SAFETY: nginx has read the body, and keeps it as long as the request.
        let received = unsafe { Received::of(r.raw()) };
        let len = received.pieces().map(Piece::len).sum();
        Body { received, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Writes the body into a draft.
    pub fn copy(&self, worker: &mut Worker, draft: &mut Draft) -> Result<(), Denial> {
        self.received
            .pieces()
            .try_for_each(|piece| piece.read(|bytes| worker.write(draft, bytes)))
            .map_err(|_| UNREADABLE)
    }

    /// The whole body in one piece; borrowed if it is in one buffer.
    pub fn read(&self) -> Result<Cow<'_, [u8]>, Denial> {
        let mut pieces = self.received.pieces().filter(|piece| piece.len() > 0);
        if let (Some(only), None) = (pieces.next(), pieces.next())
            && let Some(bytes) = only.memory()
        {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut text = Vec::with_capacity(self.len);
        self.received
            .pieces()
            .try_for_each(|piece| piece.read(|bytes| text.extend_from_slice(bytes)))
            .map_err(|_| UNREADABLE)?;
        Ok(Cow::Owned(text))
    }
}

/// Text of the deletion notice for a channel's subscribers.
pub fn deletion_notice(settings: &Settings, body: &Body) -> Result<Vec<u8>, Denial> {
    if body.len() == 0 {
        Ok(settings.channel_deleted_text.clone())
    } else {
        Ok(body.read()?.into_owned())
    }
}
