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
use zeroize::Zeroizing;

/// Maximum of descriptors in one message: the kernel's limit (`SCM_MAX_FD`).
const FDS: usize = 253;

/// A longer payload goes into a memory file of its own: sockets accept about 200 KiB at once.
const INLINE: usize = 32 * 1024;

/// Longest secret: it goes into no file, and is within what sockets accept at once, with a payload beside it.
pub const SECRET: usize = 40 * 1024;

/// Longest payload that is read.
const LONGEST: u64 = 256 * 1024 * 1024;

/// First byte of a message: the place of its payload, and whether a secret goes before it, after its length.
const HERE: u8 = 0;
const IN_FILE: u8 = 1;
const WITH_SECRET: u8 = 2;

/// Bytes of the length.
const LENGTH: usize = 4;

/// Result of reading a socket.
pub enum Received {
    Message {
        payload: Vec<u8>,
        secret: Zeroizing<Vec<u8>>,
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
    send_with(socket, payload, &[], fds)
}

/// Sends a whole message, with a secret that is only ever in the socket, or nothing.
pub fn send_with(socket: BorrowedFd<'_>, payload: &[u8], secret: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if secret.len() > SECRET {
        return Err(io::ErrorKind::InvalidInput.into());
    }
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
    let length = (secret.len() as u32).to_le_bytes();
    let (place, length) = match secret {
        [] => (place, &[][..]),
        _ => (place | WITH_SECRET, &length[..]),
    };
    let place = [place];
    let parts = [&place[..], length, secret, payload].map(IoSlice::new);
    sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives the next message. After an error the session cannot continue.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut bytes = Zeroizing::new(vec![0; 1 + LENGTH + SECRET + INLINE]);
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
    let Some((place, secret, rest)) = split(&bytes[..received.bytes]) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let secret = Zeroizing::new(secret.to_vec());
    let payload = match place {
        IN_FILE if !fds.is_empty() => from_file(fds.remove(0))?,
        _ => rest.to_vec(),
    };
    Ok(Received::Message { payload, secret, fds })
}

/// The place of a message's payload, its secret, and what follows; None if it is cut.
fn split(message: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&first, rest) = message.split_first()?;
    if first & WITH_SECRET == 0 {
        return Some((first, &[], rest));
    }
    let (length, rest) = rest.split_first_chunk::<LENGTH>()?;
    let (secret, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((first & !WITH_SECRET, secret, rest))
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
