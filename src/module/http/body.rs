//! A request's body, once nginx has read it.

use std::borrow::Cow;

use ngx::ffi::*;
use push_stream_core::store::{Draft, Worker};

use super::denial::Denial;
use super::request::Request;
use crate::config::Settings;

/// Bytes read at once from a body that nginx spooled to a file.
const FILE_PIECE: usize = 64 * 1024;

/// A request's body, in memory or in a file.
pub struct Body {
    bufs: *const ngx_chain_t,
    len: usize,
}

impl Body {
    /// The body of a request, once nginx has read it.
    pub fn of(r: Request<'_>) -> Body {
        // SAFETY: nginx has read the body; there is no structure if there is no body.
        let bufs = unsafe {
            (*r.raw())
                .request_body
                .as_ref()
                .map_or(std::ptr::null(), |body| body.bufs.cast_const())
        };
        let mut body = Body { bufs, len: 0 };
        body.len = body.pieces().map(Piece::len).sum();
        body
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut link = self.bufs;
        std::iter::from_fn(move || {
            // SAFETY: the chain ends with NULL, its buffers live as long as the request.
            unsafe {
                let chain = link.as_ref()?;
                link = chain.next;
                Some(Piece(&*chain.buf))
            }
        })
    }

    /// Writes the body into a draft.
    pub fn copy(&self, worker: &mut Worker, draft: &mut Draft) -> Result<(), Denial> {
        self.pieces()
            .try_for_each(|piece| piece.read(|bytes| worker.write(draft, bytes)))
    }

    /// The whole body in one piece; borrowed if it is in one buffer.
    pub fn read(&self) -> Result<Cow<'_, [u8]>, Denial> {
        let mut pieces = self.pieces().filter(|piece| piece.len() > 0);
        if let (Some(only), None) = (pieces.next(), pieces.next())
            && let Some(bytes) = only.memory()
        {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut text = Vec::with_capacity(self.len);
        self.pieces()
            .try_for_each(|piece| piece.read(|bytes| text.extend_from_slice(bytes)))?;
        Ok(Cow::Owned(text))
    }
}

/// One buffer of a body.
#[derive(Clone, Copy)]
struct Piece<'b>(&'b ngx_buf_t);

impl<'b> Piece<'b> {
    fn len(self) -> usize {
        let buf = self.0;
        if buf.in_file() != 0 {
            (buf.file_last - buf.file_pos) as usize
        } else {
            // SAFETY: a memory buffer's ends are in the same allocation; both are NULL if it has none.
            unsafe { buf.last.offset_from(buf.pos) as usize }
        }
    }

    /// The buffer's bytes, unless they are in a file.
    fn memory(self) -> Option<&'b [u8]> {
        if self.0.in_file() != 0 {
            return None;
        }
        if self.len() == 0 {
            return Some(&[]);
        }
        // SAFETY: the buffer holds that many bytes, as long as the request lives.
        Some(unsafe { std::slice::from_raw_parts(self.0.pos, self.len()) })
    }

    fn read(self, mut take: impl FnMut(&[u8])) -> Result<(), Denial> {
        match self.memory() {
            Some([]) => Ok(()),
            Some(bytes) => {
                take(bytes);
                Ok(())
            }
            None => self.read_file(take),
        }
    }

    fn read_file(self, mut take: impl FnMut(&[u8])) -> Result<(), Denial> {
        let mut piece = vec![0; FILE_PIECE.min(self.len())];
        let mut offset = self.0.file_pos;
        while offset < self.0.file_last {
            let want = piece.len().min((self.0.file_last - offset) as usize);
            // SAFETY: the temporary file is open as long as the request lives; `piece` has room for `want` bytes.
            let got = unsafe { ngx_read_file(self.0.file, piece.as_mut_ptr(), want, offset) };
            let Some(bytes) = usize::try_from(got)
                .ok()
                .filter(|&got| got > 0)
                .map(|got| &piece[..got])
            else {
                return Err(Denial::Internal("cannot read the request body from its temporary file"));
            };
            take(bytes);
            offset += bytes.len() as off_t;
        }
        Ok(())
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
