//! Requests to the kernel and their answers.

use std::io;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use super::KernelError;

/// Times a listing is asked for again because the kernel changed it meanwhile (`NLM_F_DUMP_INTR`).
const DUMPS: usize = 8;

/// A netlink socket for requests.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    handle: Handle,
}

impl Requests {
    pub(super) fn open() -> Result<Requests, KernelError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| KernelError::Open { source })?;
        // Ends by itself with the last handle.
        tokio::spawn(connection);
        Ok(Requests { handle })
    }

    /// Asks for something to be done; `flags` beside "request" and "acknowledge".
    pub(super) async fn tell(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).await.map(drop)
    }

    /// Asks for one object.
    pub(super) async fn ask(&self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let (answers, _) = self.exchange(message, NLM_F_REQUEST).await?;
        let none = || io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel gave no answer");
        answers.into_iter().next().ok_or_else(none)
    }

    /// Asks for all objects of a kind.
    pub(super) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMPS {
            let (answers, interrupted) = self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP).await?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the kernel's tables change faster than they can be listed",
        ))
    }

    /// The answers, and whether the kernel says that they are not of one moment.
    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        let closed = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the netlink socket was closed");
        let mut stream = self.handle.clone().request(request).map_err(closed)?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        while let Some(answer) = stream.next().await {
            interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Overrun(_) => interrupted = true,
                _ => {}
            }
        }
        Ok((answers, interrupted))
    }
}
