//! Messages with descriptors over Unix sockets.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Maximum of descriptors in one message: the kernel's limit (`SCM_MAX_FD`).
const FDS: usize = 253;

/// A longer payload goes into a memory file of its own: sockets accept about 200 KiB at once.
const INLINE: usize = 32 * 1024;

/// Longest payload that is read.
const LONGEST: u64 = 256 * 1024 * 1024;

/// First byte of a message: the place of its payload.
const HERE: u8 = 0;
const IN_FILE: u8 = 1;

/// Result of reading a socket.
pub enum Received {
    Message {
        payload: Vec<u8>,
        fds: Vec<OwnedFd>,
    },
    /// No message yet.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// Both ends of a new non-blocking socket. `stream`: connection-oriented; each end notices the other's close, and
/// nothing is lost.
pub fn pair(stream: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = if stream {
        SocketType::SEQPACKET
    } else {
        SocketType::DGRAM
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, kind, flags, None)?)
}

/// Sends a whole message, or nothing.
pub fn send(socket: BorrowedFd<'_>, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut all: Vec<BorrowedFd<'_>> = Vec::with_capacity(fds.len() + 1);
    let file = if payload.len() > INLINE {
        Some(in_file(payload)?)
    } else {
        None
    };
    let (place, payload) = match &file {
        Some(file) => {
            all.push(file.as_fd());
            (IN_FILE, &[][..])
        }
        None => (HERE, payload),
    };
    all.extend_from_slice(fds);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !all.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&all)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(std::slice::from_ref(&place)), IoSlice::new(payload)];
    sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives the next message. After an error the session cannot continue.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut bytes = vec![0; 1 + INLINE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = match recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    ) {
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Received::Nothing),
        result => result?,
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    if received.bytes == 0 {
        return Ok(Received::Closed);
    }
    // More descriptors than this process may open: some of the message are lost.
    if received.flags.intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let payload = if bytes[0] == IN_FILE && !fds.is_empty() {
        from_file(fds.remove(0))?
    } else {
        bytes.truncate(received.bytes);
        bytes.remove(0);
        bytes
    };
    Ok(Received::Message { payload, fds })
}

fn in_file(payload: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("push stream handover", MemfdFlags::CLOEXEC)?);
    file.write_all(payload)?;
    Ok(file.into())
}

fn from_file(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    file.rewind()?;
    let mut payload = Vec::new();
    file.take(LONGEST).read_to_end(&mut payload)?;
    Ok(payload)
}
