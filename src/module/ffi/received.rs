//! A request's body as nginx has read it.

use std::ptr;

use ngx::ffi::*;

/// Bytes read at once from a body that nginx spooled to a file.
const FILE_PIECE: usize = 64 * 1024;

/// The buffers of a body, in memory or in a file.
pub struct Received(*const ngx_chain_t);

/// The temporary file cannot be read.
pub struct Unreadable;

impl Received {
    /// # Safety
    /// nginx has read the body of `r`, which lives longer than this.
    pub unsafe fn of(r: *mut ngx_http_request_t) -> Received {
        // SAFETY: there is no structure if there is no body.
        let body = unsafe { (*r).request_body.as_ref() };
        Received(body.map_or(ptr::null(), |body| body.bufs.cast_const()))
    }

    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut link = self.0;
        std::iter::from_fn(move || {
            // SAFETY: the chain ends with NULL, its buffers live as long as the request.
            unsafe {
                let chain = link.as_ref()?;
                link = chain.next;
                Some(Piece(&*chain.buf))
            }
        })
    }
}

/// One buffer of a body.
#[derive(Clone, Copy)]
pub struct Piece<'b>(&'b ngx_buf_t);

impl<'b> Piece<'b> {
    pub fn len(self) -> usize {
        let buf = self.0;
        if buf.in_file() != 0 {
            (buf.file_last - buf.file_pos) as usize
        } else {
            // SAFETY: a memory buffer's ends are in the same allocation; both are NULL if it has none.
            unsafe { buf.last.offset_from(buf.pos) as usize }
        }
    }

    /// The buffer's bytes, unless they are in a file.
    pub fn memory(self) -> Option<&'b [u8]> {
        if self.0.in_file() != 0 {
            return None;
        }
        if self.len() == 0 {
            return Some(&[]);
        }
        // SAFETY: the buffer holds that many bytes, as long as the request lives.
        Some(unsafe { std::slice::from_raw_parts(self.0.pos, self.len()) })
    }

    /// Passes its bytes on, in pieces.
    pub fn read(self, mut take: impl FnMut(&[u8])) -> Result<(), Unreadable> {
        match self.memory() {
            Some([]) => Ok(()),
            Some(bytes) => {
                take(bytes);
                Ok(())
            }
            None => self.read_file(take),
        }
    }

    fn read_file(self, mut take: impl FnMut(&[u8])) -> Result<(), Unreadable> {
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
                return Err(Unreadable);
            };
            take(bytes);
            offset += bytes.len() as off_t;
        }
        Ok(())
    }
}
